"""Studies from Python: what ``tune.py`` does, by the same names. The command line calls these functions.

Imported by ``import ammpl``, so that nothing but the standard library is imported before something is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Unpack, cast, overload

if TYPE_CHECKING:
    import pyarrow as pa

    from ammpl.report.tables import Table
    from ammpl.study.rerun import Comparison
    from ammpl.study.rerun_trial import Verdict
    from ammpl.study.result.summary import StudySummary
    from ammpl.study.settings import Settings, Space, Surroundings
    from ammpl.study.views.ui import UserInterface
    from ammpl.training.classifier import Classifier

    class RunSettings(Settings, Surroundings, total=False):
        """Everything that a new study can be asked for."""


class Report(NamedTuple):
    """A report that was written: its page; why MLflow, and why the study's copy, lack it, None where they do not."""

    page: Path
    not_logged: str | None
    not_copied: str | None = None


class Rerun(NamedTuple):
    """A study that was run again, and how it compares with the old one; None if it was interrupted."""

    study: Study
    comparison: Comparison | None


def run(space: Space | None = None, **settings: Unpack[RunSettings]) -> Study:
    """Run a study to its end: search or compare, confirm, test, report.

    Ray is started on this machine and ended, unless it is connected already or ``ray_address`` names a cluster.

    Args:
        space: a space file, the name of a saved one (``"smoke"``), or its content as a dictionary; None takes
            ``default``.
        **settings: those of :class:`ammpl.study.settings.Settings`, which change the space, and of
            :class:`ammpl.study.settings.Surroundings`, which decide no number.

    Raises:
        UserError: something the caller can mend, found before any trial; nothing is left behind then.

    Example:
        >>> study = ammpl.study.run("smoke", trials=4, seed=1)  # doctest: +SKIP
        >>> study.trials().to_pandas()  # doctest: +SKIP
    """
    from ammpl.study.settings import Settings, Surroundings, check_names, options_of, study_space

    check_names(settings, Settings, Surroundings)
    of_space = {name: value for name, value in settings.items() if name in Settings.__annotations__}
    checked = study_space(space, "call", **cast(Settings, of_space))
    others = {name: value for name, value in settings.items() if name not in of_space}
    options = options_of(f"study {checked.name}", **cast(Surroundings, others))

    from ammpl.study.study import run_study

    return _to_its_end(lambda: run_study(checked, options), cast(Surroundings, others))


def open(folder: str | Path) -> Study:
    """Return the study in a folder, running or not; one at an address (``s3://…``) is fetched to ``studies`` first.

    Raises:
        UserError: the folder is no study's, or the address cannot be reached.
    """
    from ammpl.study.plan.replay import check_study

    folder = _folder(folder)
    check_study(folder)
    return Study(folder)


class Study:
    """A study's folder, and what can be done with it; :func:`run` and :func:`open` return one.

    Attributes:
        folder: where everything is.
        summary: what came out, where this process ran the study; else None.
        said: what became of the report and the notification at the study's end, a line each.
    """

    def __init__(self, folder: Path, summary: StudySummary | None = None, said: Sequence[str] = ()):
        self.folder = folder
        self.summary = summary
        self.said = tuple(said)

    def __repr__(self) -> str:
        return f"Study({str(self.folder)!r})"

    def _repr_markdown_(self) -> str:
        """Show the tables of the end in a notebook, else how far the study is."""
        from ammpl.escaping import markdown, markdown_code

        if self.summary is not None:
            head = f"**{markdown(self.summary.study)}** in {markdown_code(str(self.folder))}"
            return f"{head}\n\n{self.summary.markdown()}"
        return "\n".join(f"- {markdown(line)}" for line in self.status())

    # -- results --

    def trials(self) -> pa.Table:
        """Return ``trials/trials.parquet``, a row a trial; ``.to_pandas()`` makes a frame of it. See docs/results.md.

        Of a study that runs it is a few seconds old. Raises UserError where it cannot be read.
        """
        return self._table("trials")

    def curves(self) -> pa.Table:
        """Return ``curves/curves.parquet``, a row for each metric of each evaluation; else as :meth:`trials`."""
        return self._table("curves")

    def results(self) -> pa.Table:
        """Return what was compared (winner, finalists, baselines, variants), a row for each metric and repeat.

        Columns: candidate, label, method, tuned, metric, dataset, shots, repeat, value.
        """
        import pyarrow as pa

        from ammpl.report.results import read_study

        rows = [
            {
                "candidate": row.candidate,
                "label": row.label,
                "method": row.method,
                "tuned": row.tuned,
                "metric": metric,
                "dataset": dataset,
                "shots": shots,
                "repeat": repeat,
                "value": value,
            }
            for row in read_study(self.folder).rows
            for metric, by_shots in row.measured.items()
            for shots, values in by_shots.items()
            for (dataset, repeat), value in values.items()
        ]
        texts = dict.fromkeys(("candidate", "label", "method"), pa.string())
        numbers = {"shots": pa.int64(), "repeat": pa.int64(), "value": pa.float64()}
        types = {**texts, "tuned": pa.bool_(), "metric": pa.string(), "dataset": pa.string(), **numbers}
        return pa.Table.from_pylist(rows, schema=pa.schema(types))

    def load(self, download: bool = False) -> Classifier:
        """Return the confirmed winner as a classifier of pictures; see :func:`ammpl.load`."""
        import ammpl

        return ammpl.load(self.folder, download=download)

    def status(self) -> list[str]:
        """Return lines on how far the study is, from its folder alone."""
        from ammpl.study.status import status

        return status(self.folder)

    # -- going on --

    def stop(self) -> str:
        """Ask a running study to begin no more trials; return what that comes to. Raises UserError if it is not."""
        from ammpl.study.stop import stop

        return stop(self.folder)

    def resume(self, **surroundings: Unpack[Surroundings]) -> Study:
        """Go on with a study that was interrupted or died; without a summary where there was nothing to do.

        Of a study that has ended, MLflow is told what it lacks.

        Raises:
            UserError: the study is being run, was changed since, or something else that can be mended.
        """
        from ammpl.study.record.event_log import FILE, read_history
        from ammpl.study.settings import options_of

        has_ended = read_history(self.folder / FILE).has_ended
        options = options_of(None if has_ended else f"resuming {self.folder}", **surroundings)

        from ammpl.study.study import resume_study

        return _to_its_end(lambda: resume_study(self.folder, options), surroundings) or self

    def extend(
        self,
        trials: int = 0,
        time_budget: str | None = None,
        repeats: int = 0,
        space: Space | None = None,
        **surroundings: Unpack[Surroundings],
    ) -> Study:
        """Add to a study, ended or stopped: a new version of it in the same folder.

        Args:
            trials: how many more of the search.
            time_budget: for how much longer trials of it may begin: ``"1h"``.
            repeats: how many more of an ablation's variants.
            space: what is searched from now on; None goes on as before.
            **surroundings: of :class:`ammpl.study.settings.Surroundings`, without ``output``.

        Raises:
            UserError: nothing is added, or the addition does not fit the study, which stays as it was.
        """
        from ammpl.errors import UserError
        from ammpl.study.plan.extension import Extension
        from ammpl.study.settings import options_of, read_any
        from ammpl.study.space.budget import duration_seconds

        if not (trials or time_budget or repeats):
            fix = "give --trials +50, --time-budget +1h or --repeats +5"
            raise UserError("extend", "needs to know by how much", fix=fix)
        for flag, count in (("--trials", trials), ("--repeats", repeats)):
            if count < 0:
                raise UserError(flag, "must say how much more", got=count)
        try:
            seconds = duration_seconds(time_budget) if time_budget else 0.0
        except ValueError as error:
            raise UserError("--time-budget", str(error), got=time_budget, fix="--time-budget +1h30m") from None
        more = Extension(trials, seconds, repeats, None if space is None else read_any(space))
        options = options_of(f"extending {self.folder}", **surroundings)

        from ammpl.study.study import extend_study

        return _to_its_end(lambda: extend_study(self.folder, more, options), surroundings)

    # -- again --

    def rerun(self, only: Sequence[str] = (), **surroundings: Unpack[Surroundings]) -> Rerun:
        """Run a finished study again, every version of it, and compare the two to the last bit.

        Args:
            only: of an ablation, the variants, or trials such as ``learned-r3``, to run; all if none is named.
            **surroundings: of :class:`ammpl.study.settings.Surroundings`.

        Raises:
            UserError: the study has not ended, has no such variant, or something else that can be mended.
        """
        from ammpl.study.rerun import compare, finished_versions
        from ammpl.study.rerun import only as part
        from ammpl.study.settings import options_of

        versions = finished_versions(self.folder)
        if only:  # the last version of an ablation has the trials of all
            versions = [part(versions[-1], only)]
        first, *later = versions
        options = options_of(f"study {first.name}", **surroundings)

        from ammpl.study.study import extend_study, run_study

        def again() -> StudySummary:
            summary = run_study(first, options)
            for version in later:
                if summary.interrupted or summary.errors:
                    break
                summary = extend_study(summary.folder, version, options)
            return summary

        study = _to_its_end(again, surroundings)
        if study.summary is None or study.summary.interrupted or study.summary.errors:
            return Rerun(study, None)
        return Rerun(study, compare(self.folder, study.folder, part=bool(only)))

    def rerun_trial(
        self,
        trial: str | int,
        data_root: str | Path | None = None,
        store: str | Path | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> Verdict:
        """Run one trial again in this process, and say whether it is the same to the last bit.

        Args:
            trial: a number of the search, or a key: ``"confirm-0017-r2"``.
            data_root: has the data sets.
            store: has prepared files.
            say: is told what happens, a line at a time.

        Raises:
            UserError: there is no such trial, it has not ended, or its data are missing.
        """
        from ammpl.study.rerun_trial import rerun_trial
        from ammpl.study.settings import home_of

        return rerun_trial(self.folder, str(trial), home_of(data_root, store), say)

    # -- views --

    def report(
        self,
        *others: Study | str | Path,
        output: str | Path | None = None,
        tracking: bool = True,
        tracking_uri: str | None = None,
    ) -> Report:
        """Write the report, a page with its tables and figures, and log it to the study's run in MLflow.

        Args:
            others: studies that are reported together with this one.
            output: its folder; None takes ``report`` in the study's.
            tracking: whether MLflow gets it, where it has the study.
            tracking_uri: MLflow's; None takes the study's own, if you have given it to the study on this machine.

        Raises:
            UserError: a study cannot be read, or the report cannot be written.
        """
        from ammpl.data.home import replaced
        from ammpl.report.files import PAGE
        from ammpl.report.report import write_report
        from ammpl.report.tracking import log_report
        from ammpl.study.views.mirror import update

        folders = [self.folder, *(_folder(other) for other in others)]
        written = write_report(folders, None if output is None else replaced(output))
        not_logged = log_report(self.folder, written, tracking_uri) if tracking else "left alone"
        return Report(written / PAGE, not_logged, update(self.folder))

    def compare(self, other: Study | str | Path) -> list[Table]:
        """Return what differs between this study and another, then the results of what both have.

        Raises:
            UserError: a study cannot be read.
        """
        from ammpl.report.compare import compare_studies

        return compare_studies(self.folder, _folder(other))

    @contextmanager
    def ui(self, tracking_uri: str | None = None, port: int | None = None) -> Iterator[UserInterface]:
        """Serve MLflow's UI for the length of a ``with`` block; its ``address`` is the study's page.

        Raises:
            UserError: the study was not tracked, or its store or the port cannot be used.
        """
        from ammpl.study.views.ui import UserInterface

        with UserInterface(self.folder, tracking_uri, port) as interface:
            yield interface

    def _table(self, name: str) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from ammpl.errors import UserError, reason_of

        path = self.folder / name / f"{name}.parquet"
        try:
            return pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            fix = "a study writes it at its begin"
            raise UserError(str(path), f"cannot be read ({reason_of(error)})", fix=fix) from None


def _folder(study: Study | str | Path) -> Path:
    """Return a study's folder, where it is at an address a fetched one."""
    from ammpl.study.addresses import is_remote

    if isinstance(study, Study):
        return study.folder
    if not is_remote(study):
        return Path(study)

    from ammpl.study.views.remote import brought_here

    return brought_here(str(study))


@overload
def _to_its_end(work: Callable[[], StudySummary], surroundings: Surroundings) -> Study: ...
@overload
def _to_its_end(work: Callable[[], StudySummary | None], surroundings: Surroundings) -> Study | None: ...
def _to_its_end(work: Callable[[], StudySummary | None], surroundings: Surroundings) -> Study | None:
    """Run a study, write its report if it came to its end, and tell who wants to know; None if nothing was to do."""
    from ammpl.errors import UserError
    from ammpl.study import notify
    from ammpl.study.addresses import without_path

    url = surroundings.get("notify")
    try:
        summary = work()
    except UserError:
        raise  # found before it began
    except Exception as error:
        if url is not None:
            notify.post(url, notify.failure(error))
        raise
    if summary is None:
        return None
    study = Study(summary.folder, summary)
    if surroundings.get("report", True) and not (summary.interrupted or summary.errors):
        tracking = surroundings.get("tracking", True) and not summary.problems
        study.said = _reported(study, tracking, surroundings.get("tracking_uri"))
    if url is not None and (problem := notify.post(url, notify.message(summary))) is not None:
        study.said += (f"warning: {without_path(url)} was not told of the end ({problem})",)
    return study


def _reported(study: Study, tracking: bool, tracking_uri: str | None) -> tuple[str, ...]:
    """Write the report; return what became of it."""
    from ammpl.errors import reason_of

    try:
        report = study.report(tracking=tracking, tracking_uri=tracking_uri)
    except Exception as error:  # a report is a view: it never changes how a study ended
        return (f"warning: no report ({reason_of(error)})",)
    missing = tracking and report.not_logged is not None
    line = f"report: {report.page}" + (f"; not in MLflow: {report.not_logged}" if missing else "")
    return (line, *([f"warning: {report.not_copied}"] if report.not_copied else []))
