"""``tune.py report``: studies read, one page made of them, with its tables and figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ammpl.errors import UserError
from ammpl.escaping import file_name
from ammpl.report.comparisons import CONDITIONS, joint_rows
from ammpl.report.figures import Figure
from ammpl.report.files import PAGE, SUBFOLDERS, put, replaceable
from ammpl.report.masks import Picture
from ammpl.report.page import Block, Section, Text, page
from ammpl.report.results import StudyResult, read_study
from ammpl.report.sections import study_sections
from ammpl.report.statistics import summarize
from ammpl.report.tables import Column, Table
from ammpl.study.record.folder import ELSEWHERE

READING = (
    "n, mean and sd (ddof 1) are over repeats: other few-shot samples and starts. On one data set repeats "
    "are the sample; "
    "over several data sets each one's repeats are averaged first, and n is the number of data sets. "
    "Intervals are 95 % "
    "t-intervals and condition on the fixed images that were scored.",
    "A difference is paired: within a repeat all candidates share the sample and the seeds. Its p is the "
    "paired t-test's; "
    "Holm's correction is over the family that the space file declares. Signed-rank p-values are given only where the "
    "smallest possible one could pass the correction.",
    "Verdicts are on a declared claim, that the reference is better by at least the smallest effect of "
    "interest: it holds "
    "where the interval lies beyond that effect, does not where the interval excludes it, and is undecided otherwise.",
    "Point at anything drawn or listed to see the same thing elsewhere on the page; a click keeps it.",
)


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the report on one or several studies; return its folder.

    Args:
        folders: of the studies; one that still runs, or died, is reported as far as it is.
        output: a new or empty folder, or that of a former report, of which only the files that its list names are
            replaced; None takes ``report`` in the first study's.

    Raises:
        UserError: a folder is no study's, a file of it cannot be read, or the report cannot be written.
    """
    target = output or folders[0] / "report"
    where = "--output" if output else str(target)
    if output is None and target.is_symlink():
        raise UserError(
            where, "is a link, which a report does not follow", fix="remove it, or name a folder: --output"
        )
    former = replaceable(target, folders, where)
    studies = [read_study(folder) for folder in folders]
    title = studies[0].name if len(studies) == 1 else " and ".join(study.name for study in studies)
    sections = [*_joint(studies), *_of_each(studies), Section("How to read this", [Text(text) for text in READING])]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            draft = Path(folder)
            for name in SUBFOLDERS:
                (draft / name).mkdir()
            for section in sections:
                for block in section.blocks:
                    _save(block, draft)
            (draft / PAGE).write_text(page(title, sections), encoding="utf-8")
            put(draft, target, former, where)
    except OSError as error:
        raise UserError(str(target), f"cannot be written ({error.strerror})", fix=ELSEWHERE) from None
    return target


def _save(block: Block, folder: Path) -> None:
    if isinstance(block, Table):
        for ending, text in (("csv", block.csv()), ("md", block.markdown()), ("tex", block.latex())):
            (folder / "tables" / f"{file_name(block.name)}.{ending}").write_text(text, encoding="utf-8")
    elif isinstance(block, Figure):
        block.save(folder / "figures")
    elif isinstance(block, Picture):
        (folder / "figures" / f"{file_name(block.name)}.png").write_bytes(block.png)


def _of_each(studies: Sequence[StudyResult]) -> list[Section]:
    """Return the studies' sections; with several studies each is called by its study, in the files too."""
    if len(studies) == 1:
        return study_sections(studies[0])
    sections = []
    for number, study in enumerate(studies, 1):
        for section in study_sections(study):
            blocks = [
                replace(block, name=f"{number}-{block.name}") if isinstance(block, Table | Figure | Picture) else block
                for block in section.blocks
            ]
            sections.append(replace(section, title=f"{study.name}: {section.title}", blocks=blocks))
    return sections


def _joint(studies: Sequence[StudyResult]) -> list[Section]:
    """Return the studies' candidates in one table a metric; nothing for a single study."""
    if len(studies) == 1:
        return []
    rows = joint_rows(studies)
    blocks: list[Block] = []
    opened = [study.name for study in studies if study.test_openings]
    if len(opened) > 1:
        text = f"The test split was opened by {len(opened)} of these studies ({', '.join(opened)}): "
        blocks.append(Text(text + "whoever chooses among them now chooses by test numbers.", "warning"))
    for metric in dict.fromkeys(metric for study in studies for metric in study.metrics):
        lines, keys = [], []
        for row in rows:
            for shots, values in sorted(row.measured.get(metric, {}).items()):
                found = summarize(values)
                data = ", ".join(sorted({data_set for data_set, _ in values}))
                lines.append((row.label, data, shots, found.n, found.mean, found.sd, found.low, found.high))
                keys.append(row.candidate)
        if lines:
            blocks.append(_joint_table(metric, tuple(lines), tuple(keys)))
    return [Section("Together", blocks)]


def _joint_table(metric: str, lines: tuple[tuple[str | float | int | None, ...], ...], keys: tuple[str, ...]) -> Table:
    columns = (
        Column("study: candidate"),
        Column("data"),
        Column("shots", "d"),
        Column("n", "d"),
        Column("mean", ".4f"),
        Column("sd", ".4f"),
        Column("95 % low", ".4f"),
        Column("95 % high", ".4f"),
    )
    images = "test" if metric.startswith("test/") else "validation"
    note = CONDITIONS.format(unit="repeats, or data sets", images=images)
    return Table(f"together-{metric.replace('/', '-')}", metric, columns, lines, note, keys)
