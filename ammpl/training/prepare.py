"""Preparing data ahead of trials: every list that they will read, in the form in which they read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ammpl.config import TrialConfig
from ammpl.data.dataset import Dataset, Pictures, Progress
from ammpl.data.home import DataHome
from ammpl.data.registry import open_dataset
from ammpl.data.task import crops, target_names
from ammpl.data.transform import ImageTransform
from ammpl.model.backbone import load_preprocessing
from ammpl.training.run import image_transform


@dataclass(frozen=True)
class Part:
    """A list of pictures to prepare.

    Attributes:
        dataset: whose list it is.
        name: ``train``, ``validation`` or ``test``.
        pictures: the list.
        transform: of the backbone.
        originals: whether whole pictures are kept.
    """

    dataset: Dataset
    name: str
    pictures: Pictures
    transform: ImageTransform
    originals: bool

    def __len__(self) -> int:
        return len(self.pictures.labels)

    def prepare(self, progress: Progress | None = None) -> list[str]:
        """Prepare the pictures unless they are; return what a person should know of them.

        Raises:
            UserError: pictures cannot be read, or the store cannot be written.
        """
        self.pictures.open(self.transform, originals=self.originals, progress=progress)
        return self.pictures.notes(self.transform, originals=self.originals)

    def contents(self) -> dict[str, str]:
        """Return the path of each content, by its digest."""
        return self.pictures.contents(self.transform, originals=self.originals)


def parts(config: TrialConfig, home: DataHome) -> Iterator[Part]:
    """Yield the lists that trials of a configuration read, those of its test included.

    Args:
        config: any trial's; its seeds play no part.
        home: where data lie.

    Raises:
        UserError: unknown names, or files that are not as they should be.
    """
    transform = image_transform(load_preprocessing(config.backbone))
    for name in (config.data.name, *target_names(config.data)):
        dataset = open_dataset(name, home, config.data.skip_broken)
        train, lists = dataset.train, {"validation": dataset.validation, "test": dataset.open_test()}
        if name == config.data.name and len(train.labels) and not train.drawn_first:
            yield Part(dataset, "train", train, transform, crops(config.data, dataset))
        for part, pictures in lists.items():
            if len(pictures.labels) and (part == "test" or name == config.data.name):
                yield Part(dataset, part, pictures, transform, False)
