"""What is done before a study, from Python and by ``tune.py``: :func:`doctor`, :func:`prepare`, :func:`schema`.

Imported by ``import ammpl``, so that nothing but the standard library is imported before something is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ammpl.study.readiness import Finding


def prepare(
    *datasets: str,
    backbone: str | None = None,
    pretrained: str | None = None,
    skip_broken: bool = False,
    download: bool = False,
    data_root: str | Path | None = None,
    store: str | Path | None = None,
    done: Callable[[str], None] = lambda text: None,
) -> None:
    """Prepare data sets ahead; a study does so by itself on first use.

    Args:
        datasets: names, or folders.
        backbone: whose pixels; of open_clip; None takes ViT-B-16.
        pretrained: its weights; None takes ``openai`` where ``backbone`` is None.
        skip_broken: leave out unreadable pictures.
        download: get what is not there from its owners, where they allow.
        data_root: has the data sets; None takes AMMPL_DATA_ROOT, else ``data``.
        store: gets prepared files; None takes AMMPL_STORE, else the user's cache folder.
        done: is told of each data set.

    Raises:
        UserError: a name, a file or the disk is not as it must be.
    """
    from ammpl.config import resolve
    from ammpl.data.catalog import DESCRIPTIONS
    from ammpl.data.home import EMBEDDED
    from ammpl.study.engine.preparation import download_data, prepare_data
    from ammpl.study.settings import dataset_of, home_of

    home = home_of(data_root, store)
    if backbone is None and pretrained is None:
        pretrained = "openai"
    for dataset in datasets:
        name = dataset_of(dataset)
        if download and name in DESCRIPTIONS:
            download_data(name, home)
        values = {
            "data.name": name,
            "data.skip_broken": skip_broken,
            "backbone.name": backbone or "ViT-B-16",
            "backbone.pretrained": pretrained,
        }
        prepare_data([resolve("zero_shot", values, "command line")], home)
        done(f"{dataset}: " + ("embedded, nothing to prepare" if name in EMBEDDED else f"prepared in {home.store}"))


def doctor(
    backbone: str | None = None,
    pretrained: str | None = None,
    ray_address: str | None = None,
    tracking_uri: str | None = None,
    data_root: str | Path | None = None,
    store: str | Path | None = None,
) -> Iterator[Finding]:
    """Look whether this machine is ready for studies, one thing after the other; nothing is left behind.

    Args:
        backbone: a ViT of open_clip; None takes the embedded ``tiny-glyph``.
        pretrained: its weights: a tag of open_clip, or a file.
        ray_address: of a cluster; None starts Ray on this machine.
        tracking_uri: MLflow's; None takes MLFLOW_TRACKING_URI, else ``mlflow.db`` here.
        data_root: has the data sets; None takes AMMPL_DATA_ROOT, else ``data``.
        store: gets prepared files; None takes AMMPL_STORE, else the user's cache folder.

    Example:
        >>> print(*ammpl.study.doctor(), sep="\\n")  # doctest: +SKIP
    """
    from ammpl.study.readiness import Surroundings, examine
    from ammpl.study.settings import home_of

    weights = None if backbone is None else (backbone, pretrained)
    return examine(Surroundings(home_of(data_root, store), tracking_uri, ray_address, weights))


def schema() -> str:
    """Return the JSON Schema of a space file, as text."""
    from ammpl.study.space.schema import schema_text

    return schema_text()
