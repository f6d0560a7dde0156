"""A trained trial as a classifier: pictures in, class names out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ammpl.config import TrialConfig
from ammpl.data.decoding import decode
from ammpl.data.registry import registered
from ammpl.errors import UserError, reason_of
from ammpl.model.ammpl import model_class
from ammpl.model.backbone import load_backbone
from ammpl.model.weights import needs_network
from ammpl.training import checkpoint
from ammpl.training.device import set_up
from ammpl.training.evaluation import scores
from ammpl.training.run import image_transform

Picture = Image.Image | str | Path | np.ndarray
"""A picture in memory, or a file that PIL reads; arrays are uint8 (H, W, 3), or (H, W) in grey."""

Pictures = Picture | Sequence[Picture] | Tensor
"""What is classified: one, several, or a tensor of prepared ones."""


class Classifier:
    """What a trial has learned, around its frozen backbone.

    Args:
        path: a trial's ``learnables.safetensors``, which names its configuration, backbone and classes.
        download: fetch the backbone's weights from their publisher where they are not on this machine.

    Attributes:
        config: the trial's.
        class_names: that it was trained on.

    Raises:
        UserError: the file is missing, damaged or no trial's, or its backbone cannot be loaded.

    Examples:
        >>> classifier = ammpl.load("studies/default-20260101-120000")  # doctest: +SKIP
        >>> classifier.predict(["a.jpg", "b.jpg"])  # doctest: +SKIP
        ['seven', 'two']
    """

    def __init__(self, path: Path, download: bool = False):
        origin = checkpoint.read_origin(path)
        self.config: TrialConfig = origin.config
        name, pretrained = origin.config.backbone.name, origin.config.backbone.pretrained
        if not download and needs_network(name, pretrained):
            rule = f"the weights of {name} are not on this machine, and reading what was learned asks no network"
            fix = "ammpl.load(..., download=True) fetches them"
            raise UserError("backbone.pretrained", rule, got=pretrained, fix=fix)
        self.class_names = origin.class_names
        backbone = load_backbone(origin.config.backbone, set_up(origin.config.backbone))
        self._transform = image_transform(backbone.preprocessing)
        self._published = origin.config.data.name in registered()  # files are read as those it was trained on
        self._model = model_class(origin.config.method)(
            origin.config.model,
            backbone,
            origin.class_names,
            origin.config.seeds,
            origin.template,
            origin.mean_pixel,
        )
        checkpoint.load_learnables(self._model, path)
        self._model.eval()

    def predict(self, images: Pictures, class_names: Sequence[str] | None = None) -> list[str]:
        """Return the most probable class name of each image; see :meth:`logits`."""
        names = self._names(class_names)
        return [names[index] for index in self.logits(images, names).argmax(-1).tolist()]

    def probabilities(self, images: Pictures, class_names: Sequence[str] | None = None) -> Tensor:
        """Return probabilities (B, C), fp32, that sum to 1 over the classes; see :meth:`logits`."""
        return self.logits(images, class_names).softmax(-1)

    def logits(self, images: Pictures, class_names: Sequence[str] | None = None) -> Tensor:
        """Return scores (B, C), fp32 on the CPU, as a test of the trial computes them.

        Args:
            images: pictures, or one, prepared here as evaluation does; or a tensor, uint8 (B, 3, S, S), that is
                prepared already.
            class_names: among which to decide, new ones included; None takes those of the training.

        Raises:
            UserError: no images, a file that is no picture, pixels of another shape, no names, or names that cannot be
                read.
        """
        names = self._names(class_names)
        if isinstance(images, Picture):
            images = [images]
        if isinstance(images, Tensor):
            size = self._transform.size
            if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, size, size):
                got = f"{images.dtype} {tuple(images.shape)}"
                raise UserError("images", f"prepared ones must be uint8 (B, 3, {size}, {size})", got=got)
        if not len(images):
            raise UserError("images", "must hold at least one picture")

        def pixels(chosen: slice) -> Tensor:
            if isinstance(images, Tensor):
                return images[chosen]
            return torch.from_numpy(
                np.stack([self._transform.evaluation_pixels(self._rgb(i)) for i in images[chosen]])
            )

        return scores(self._model, pixels, len(images), names)

    def _names(self, class_names: Sequence[str] | None) -> tuple[str, ...]:
        names = self.class_names if class_names is None else class_names
        if isinstance(names, str) or not names:
            raise UserError("class_names", "must be a list of names, one at least", got=names, fix="['cat', 'dog']")
        return tuple(names)

    def _rgb(self, image: Picture) -> Image.Image:
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
                rule = "an array must be uint8 (height, width, 3), or (height, width) in grey"
                raise UserError("images", rule, got=f"{image.dtype} {image.shape}")
            image = Image.fromarray(image)
        if isinstance(image, Image.Image):
            return image.convert("RGB")
        try:
            return decode(image, published=self._published)
        except Exception as error:  # PIL's plugins raise what they like
            raise UserError(str(image), f"is not a picture that can be read ({reason_of(error)})") from None
