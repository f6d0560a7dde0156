"""What a study can be asked for beside its space file, by the names of the command line's flags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import ammpl
from ammpl.data.catalog import DESCRIPTIONS
from ammpl.data.home import EMBEDDED, DataHome, expanded, is_path, replaced
from ammpl.errors import UserError, did_you_mean
from ammpl.escaping import terminal_line
from ammpl.study.addresses import is_remote
from ammpl.study.notify import check_url
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.budget import duration_seconds
from ammpl.study.space.search_space import SearchSpace
from ammpl.study.space.space_file import StudySpace, parse_study_space, read_space

if TYPE_CHECKING:
    from ammpl.study.study import Options

SAVED = Path("search_spaces")

Space = str | Path | Mapping[str, Any] | StudySpace
"""A space file, the name of a saved one, its content, or what was read from it."""


class Settings(TypedDict, total=False):
    """What is studied, where it is not as the space file says.

    Attributes:
        trials: of the search or ablation, at least 1.
        time_budget: no trial of it begins after that time: ``"1h30m"``.
        trial_time: a trial that takes longer has failed: ``"30m"``.
        dataset: a data set's name, or a folder.
        shots: training images a class.
        backbone: a ViT of open_clip, or ``tiny-glyph``.
        pretrained: its weights: a tag of open_clip, or a file.
        skip_broken: leave out unreadable pictures.
        seed: of the sampler and of all trials, below 2^32.
        set: any other fixed value by its dotted name: ``{"training.steps": 200}``.
        from_best: start from the winner of another study's folder.
    """

    trials: int | None
    time_budget: str | None
    trial_time: str | None
    dataset: str | None
    shots: int | None
    backbone: str | None
    pretrained: str | None
    skip_broken: bool
    seed: int | None
    set: Mapping[str, Any]
    from_best: str | Path | None


class Surroundings(TypedDict, total=False):
    """Where and with what a study runs; nothing here decides a number.

    Attributes:
        output: a new study's folder, or an address (``s3://bucket/studies/mine``) that gets a copy of it while it runs
            in ``studies``; None makes ``studies/<name>-<time>``.
        concurrency: trials at a time; None takes as many as fit.
        gpus_per_trial: None takes one if there are any; ``"auto"`` measures the first trial.
        ray_address: of a cluster, ``host:port`` or ``"auto"``; None starts Ray on this machine and ends it afterwards.
        tracking: whether MLflow is told.
        tracking_uri: MLflow's; None takes where the study began, else MLFLOW_TRACKING_URI, else ``mlflow.db`` here.
        optuna_storage: an SQL database that has the search for Optuna's tools while it runs; None takes where the
            study began, else a file in its folder.
        trust_addresses: of a study that goes on: whether the addresses that its folder names are used although you
            have not given them to it on this machine.
        data_root: has the data sets; None takes AMMPL_DATA_ROOT, else ``data``.
        store: gets prepared files; None takes AMMPL_STORE, else the user's cache folder.
        report: whether the report is written at the end, and logged to the study's run in MLflow.
        notify: a web address that is told when the study has ended; see docs/review.md.
        quiet: whether nothing is printed while the study runs.
    """

    output: str | Path | None
    concurrency: int | None
    gpus_per_trial: float | Literal["auto"] | None
    ray_address: str | None
    tracking: bool
    tracking_uri: str | None
    optuna_storage: str | None
    trust_addresses: bool
    data_root: str | Path | None
    store: str | Path | None
    report: bool
    notify: str | None
    quiet: bool


def study_space(space: Space | None, where: str, **settings: Unpack[Settings]) -> StudySpace:
    """Return a checked space with what is asked for instead of what its file says.

    Args:
        space: None takes the saved space ``default``, or with ``from_best`` that study's own.
        where: what the settings are called in errors.

    Raises:
        UserError: the file cannot be read or breaks a rule, or a setting does.
    """
    check_names(settings, Settings)
    flags = {
        "data.name": dataset_of(settings.get("dataset")),
        "data.skip_broken": settings.get("skip_broken") or None,
        "data.shots": settings.get("shots"),
        "backbone.name": settings.get("backbone"),
        "backbone.pretrained": settings.get("pretrained"),
    }
    fixed: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    for name, value in settings.get("set", {}).items():
        if name in fixed:
            raise UserError(f"--set {name}", f"is given twice on the {where}")
        fixed[name] = value
    found = _begin(space, settings.get("from_best"), fixed)
    if (seed := settings.get("seed")) is not None:
        if not 0 <= seed < 2**32:
            raise UserError("--seed", "must be from 0 to 4294967295", got=seed)
        found = found.model_copy(update={"seed": seed})
    trials, time, trial_time = settings.get("trials"), settings.get("time_budget"), settings.get("trial_time")
    if trials is not None and trials < 1:
        raise UserError("--trials", "must be at least 1", got=trials)
    for flag, text in (("--time-budget", time), ("--trial-time", trial_time)):
        try:
            text is None or duration_seconds(text)
        except ValueError as error:
            raise UserError(flag, str(error), got=text, fix=f"{flag} 10m") from None
    limits = {"trials": trials, "time": time, "trial_time": trial_time}
    budget = {name: limit for name, limit in limits.items() if limit is not None}
    found = found.model_copy(update={"budget": found.budget.model_copy(update=budget)})
    return found.with_fixed(fixed, where) if fixed else found


def _begin(space: Space | None, origin: str | Path | None, fixed: Mapping[str, Any]) -> StudySpace:
    """Return the space before it is changed: one that was named, or one that starts from another study."""
    if origin is None:
        return read_any("default" if space is None else space)

    from ammpl.study.start import from_best
    from ammpl.study.views.remote import brought_here

    return from_best(brought_here(origin), None if space is None else read_any(space), fixed)


def read_any(space: Space) -> StudySpace:
    """Return a checked space from any form of it.

    Raises:
        UserError: there is no such file or saved space, or it breaks a rule.
    """
    if isinstance(space, SearchSpace | AblationSpace):
        return space
    if isinstance(space, Mapping):
        return parse_study_space(dict(space), "space")
    path = Path(space)
    if isinstance(space, str) and path.suffix == "" and not path.exists() and path.name == space:
        saved = saved_spaces()
        if space not in saved:
            raise UserError(space, "is neither a space file nor a saved space", fix=did_you_mean(space, saved))
        path = saved[space]
    return read_space(path)


def saved_spaces() -> dict[str, Path]:
    """Return the saved spaces by name: those below the working directory, then those beside the package's sources."""
    folders = (Path(ammpl.__file__).resolve().parents[1] / SAVED, SAVED)
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def options_of(what: str | None, **surroundings: Unpack[Surroundings]) -> Options:
    """Return the options of a study; quiet unless it is asked not to be.

    Args:
        what: is about to take its seconds, which is said then.

    Raises:
        UserError: a value is out of range.
    """
    check_names(surroundings, Surroundings)
    concurrency, gpus = surroundings.get("concurrency"), surroundings.get("gpus_per_trial")
    quiet = surroundings.get("quiet", True)
    check_machine(concurrency, gpus)
    if (notify := surroundings.get("notify")) is not None:
        check_url(notify)
    if what and not quiet:
        print(terminal_line(f"{what}: starting Ray"), flush=True)

    from ammpl.study.study import Options  # imports Ray, whose seconds a mistake need not wait for

    output, address = output_of(surroundings.get("output"))
    return Options(
        output=output,
        copy_at=address,
        trust_addresses=surroundings.get("trust_addresses", False),
        concurrency=concurrency,
        gpus_per_trial=gpus,
        ray_address=surroundings.get("ray_address"),
        tracking=surroundings.get("tracking", True),
        tracking_uri=surroundings.get("tracking_uri"),
        optuna_storage=surroundings.get("optuna_storage"),
        quiet=quiet,
        home=home_of(surroundings.get("data_root"), surroundings.get("store")),
    )


def output_of(output: str | Path | None) -> tuple[Path | None, str | None]:
    """Return a new study's folder, None for the usual one, and the address that gets a copy of it.

    Raises:
        UserError: an address is none.
    """
    if output is None or not is_remote(output):
        return None if output is None else replaced(output), None

    from ammpl.study.views.remote import local_folder

    return local_folder(str(output)), str(output)


def check_names(given: Iterable[str], *known: type) -> None:
    """Raise UserError for a name that is not among those of typed dictionaries: Python takes any."""
    names = [name for kind in known for name in kind.__annotations__]
    for name in given:
        if name not in names:
            raise UserError(f"call: {name}", "is no setting", fix=did_you_mean(name, names))


def check_machine(concurrency: int | None, gpus_per_trial: float | str | None) -> None:
    """Raise UserError for a setting of the machine that is out of range."""
    for flag, value, least in (("--concurrency", concurrency, 1), ("--gpus-per-trial", gpus_per_trial, 0)):
        if isinstance(value, str) and value != "auto":
            raise UserError(flag, "must be a number or 'auto'", got=value)
        if isinstance(value, int | float) and not value >= least:
            raise UserError(flag, f"must be at least {least}", got=value)


def home_of(data_root: str | Path | None, store: str | Path | None) -> DataHome:
    """Return where data lie, as given and else by the environment."""
    given = {"root": data_root, "store": store}
    return DataHome(**{name: expanded(Path(path)) for name, path in given.items() if path is not None})


def dataset_of(name: str | None) -> str | None:
    """Return a data set's name, or its folder in full: a study may be run again from elsewhere."""
    if name is None or name in (*EMBEDDED, *DESCRIPTIONS):
        return name
    return str(expanded(Path(name))) if is_path(name) else name
