"""Strings of a study's folder are text wherever people open them: no script, control, markup, formula or command."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from rich.console import Console as RichConsole
from selenium.webdriver.common.by import By

from ammpl import cli, escaping
from ammpl.commands.command import say_error
from ammpl.errors import UserError
from ammpl.report.figures import Figure, draw
from ammpl.report.report import PAGE, write_report
from ammpl.report.tables import Column, Table
from ammpl.study.result.summary import Cell, Row, Summary
from ammpl.study.space.space_file import read_space
from ammpl.study.trial import Outcome, State, Trial
from ammpl.study.views import note
from ammpl.study.views.console import Console
from tests.integration.browser import chromium
from tests.report.studies import ablation, make
from tests.study.fakes import small_space

SCRIPT = "</text></title><script>window.hit=1</script><img src=x onerror='window.hit=1'>\" onmouseover=\"window.hit=1"
ESCAPES = "\x1b[31m\x1b]0;mine\x07\x9b2J\u202etxt\u2066\x00\r\x7f\ud800\ufffe"
RICH = "[red]red[/red][link=https://evil.example]there[/link][/]"
LATEX = r"\input{/etc/passwd}$\frac{%#&_~^ ``a'' -- \\[2em]"
MARKDOWN = "a|b\n# head\n\n![i](https://evil.example/i.png) [l](javascript:x) `c` **b** <b>b</b> https://evil.example"
PAYLOADS = (SCRIPT, ESCAPES, RICH, LATEX, MARKDOWN, "=1+1|cmd", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", " =1")
ALL = " ".join(PAYLOADS)
STORED = ALL.replace("\ud800", "")  # what UTF-8 holds; JSON has an escape for the rest
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
METRIC = f"test/=1+1 {STORED}"


def execute(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    if trial.phase == "test":
        yield 0, {"test/accuracy": 0.5 + trial.repeat / 100, METRIC: -0.25}
        return
    if trial.candidate == "none" and trial.repeat == 2:
        raise RuntimeError(STORED)
    yield 10, {"validation/accuracy": 0.5 + trial.repeat / 100, "train/loss": 1.0, "mask/keep_rate": 0.5}
    (folder / "learnables.safetensors").write_bytes(b"")


def poisoned(found: Any) -> Any:
    """Add the payloads to every string."""
    if isinstance(found, dict):
        return {name: poisoned(value) for name, value in found.items()}
    if isinstance(found, list):
        return [poisoned(value) for value in found]
    return found + ALL if isinstance(found, str) else found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = re.sub(r"[/\0\ud800]", "", f"=1 {RICH} {ESCAPES} $x <script>window.hit=1")
    space = ablation(description=STORED, repeats=[1, 2, 3], test=True)
    folder = make(tmp_path_factory.mktemp("payloads") / name, space, execute)
    environment = poisoned(json.loads((folder / "environment.json").read_text()))
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


@pytest.fixture(scope="module")
def report(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([study], tmp_path_factory.mktemp("report") / "out")


def hostile_figure() -> Figure:
    def paint(figure: Figure) -> None:
        axes = figure.drawing.subplots()
        (line,) = axes.plot([0, 1], [0, 1], label=ALL)
        figure.mark(line, ALL, f"url(#a) {ALL}")
        axes.set_xticks([0, 1], [ALL, r"$\frac{$"])
        axes.set_xlabel(ALL)
        axes.legend()

    return draw(f"../{ALL}", ALL, ALL, paint)


def test_no_script_of_a_report_runs_but_its_own(report: Path, tmp_path: Path) -> None:
    page = report / PAGE
    text = page.read_text(encoding="utf-8")
    assert not UNSEEN.search(text) and not UNSEEN.search(unescape(text))
    (tmp_path / PAGE).write_text(text.replace("</main>", f"{hostile_figure().html()}</main>"), encoding="utf-8")
    with chromium(tmp_path / "profile") as browser:
        browser.get((tmp_path / PAGE).as_uri())
        for details in browser.find_elements(By.TAG_NAME, "summary"):
            details.click()
        assert browser.find_element(By.TAG_NAME, "body").get_attribute("data-ready") == "true"
        assert browser.execute_script("return window.hit") is None
        assert len(browser.find_elements(By.TAG_NAME, "script")) == 1
        assert not browser.find_elements(By.CSS_SELECTOR, "[onerror], [onmouseover], img:not([src^='data:'])")
        shown = browser.find_element(By.TAG_NAME, "main").text
        for payload in ("<script>window.hit=1</script>", RICH, "\\x1b[31m", r"\input{/etc/passwd}", "![i](https://"):
            assert payload in shown, payload
        drawn = " ".join(svg.get_attribute("textContent") or "" for svg in browser.find_elements(By.TAG_NAME, "svg"))
        assert r"\input{/etc/passwd}$\frac" in drawn and "<script>window.hit=1</script>" in drawn


def test_figures_show_any_text(report: Path) -> None:
    html = hostile_figure().html()
    svg = ElementTree.fromstring(html[html.index("<svg") : html.rindex("</figure>")])
    texts = ["".join(element.itertext()) for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert r"$\frac{$" in texts
    assert any("<script>window.hit=1</script>" in text and LATEX in text for text in texts)
    marks = [element.get("data-tip") for element in svg.iter() if element.get("data-tip")]
    assert marks == [escaping.visible(f"url(#a) {ALL}")]
    for file in (report / "figures").glob("*.svg"):
        ElementTree.parse(file)


def test_a_spreadsheet_finds_no_formula(report: Path) -> None:
    columns = (Column("=1+1"), Column("x"), Column("y"))
    rows = tuple((payload, -0.5, "-0.25") for payload in PAYLOADS)
    lines = list(csv.reader(io.StringIO(Table("t", "t", columns, rows).csv())))
    assert lines[0] == ["'=1+1", "x", "y"]
    assert [line[1:] for line in lines[1:]] == [["-0.5", "-0.25"]] * len(rows)  # numbers stay numbers
    assert [line[0] for line in lines[-7:]] == ["'=1+1|cmd", "'+1+1", "'-1+1", "'@SUM(1)", "'\t=1", r"\r=1", "' =1"]
    for file in (report / "tables").glob("*.csv"):
        for cell in (cell for line in csv.reader(file.open(newline="", encoding="utf-8")) for cell in line):
            assert not re.match(r"\s*[=+@\t\r]|\s*-(?![\d.]+(e-?\d+)?$)", cell), cell
            assert not UNSEEN.search(cell)


def test_latex_finds_no_command(report: Path) -> None:
    columns = (Column(ALL), Column("said"))
    table = Table("t", ALL, columns, tuple((payload, payload) for payload in PAYLOADS), ALL)
    files = [path.read_text(encoding="utf-8") for path in (report / "tables").glob("*.tex")]
    layout = r"\\\\$|\\(begin|end)\{(table|tabular)\}(\{[lr]+\})?"
    layout += r"|\\(centering|toprule|midrule|bottomrule|caption)|\\label\{tab:[\w.,+=@-]+\}"
    signs = r"\\text(backslash|asciitilde|asciicircum|less|greater|bar|quotedbl|asciigrave)\{\}|\\[&%$#_{}]|\\dots\{\}"
    math = r"\$(-|\\pm|\\times|\\geq|\\leq)\$"
    for text in (table.latex(), *files):
        assert not UNSEEN.search(text)
        rest = re.sub(rf"{layout}|{signs}|{math}", "", text, flags=re.MULTILINE)
        assert not re.search(r"[\\$%#_^~]", rest), rest
        assert rest.count("{") == rest.count("}")
        assert len({line.count("&") for line in rest.splitlines() if "&" in line}) == 1
    assert "--" not in table.latex()
    assert r"\textbackslash{}input\{/etc/passwd\}\$\textbackslash{}frac\{\%\#\&\_" in table.latex()


def check_markdown(text: str) -> None:
    """Nothing is a link, a picture, code, HTML or a further row."""
    plain = re.sub(r"\\.", "", text)
    assert not UNSEEN.search(text)
    assert not re.search(r"[\[\]<>]|://", plain), plain
    assert "**b**" not in plain
    assert "\n#" not in text and not text.startswith("#")
    for table in re.findall(r"(?:^\|.*\n?)+", plain, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_markdown_is_text_in_mlflow_and_in_tables(study: Path, report: Path) -> None:
    space = read_space(study / "study.yaml")
    check_markdown(note.question(space))
    check_markdown(note.details(space))
    assert r"\[red\]red\[/red\]" in note.question(space)
    assert "&lt;script&gt;" in note.question(space)
    for file in (report / "tables").glob("*.md"):
        check_markdown(file.read_text(encoding="utf-8"))
    table = Table("t", ALL, (Column(ALL), Column("x")), tuple((payload, payload) for payload in PAYLOADS), ALL)
    check_markdown(table.markdown())
    assert len(re.findall(r"^\|", table.markdown(), re.MULTILINE)) == 2 + len(PAYLOADS)


@pytest.mark.parametrize("payload", [*PAYLOADS, "1. x", "1) x", "- x", "+ x", "---", "=", "_a_ b_c", "&lt;"])
def test_markdown_means_the_text_that_it_was_made_of(payload: str) -> None:
    shown = MarkdownIt("commonmark").render(escaping.markdown(payload))
    assert re.fullmatch(r"<p>[^<>]*</p>\n", shown), shown
    assert unescape(shown[3:-5]) == " ".join(escaping.visible(payload).split())


def check_terminal(text: str) -> None:
    assert not UNSEEN.search(text), text


def test_a_terminal_is_told_no_controls(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "4000")
    other = make(tmp_path / "other", ablation(repeats=[1, 2, 3]), execute)
    for words in (["status", str(study)], ["status", str(study), "--watch"], ["compare", str(study), str(other)]):
        assert cli.main(words) == 0
        said = capsys.readouterr().out
        check_terminal(said)
        assert "[red]red[" in said
    (other / "study.yaml").write_text(json.dumps({ALL: ALL, "name": ALL}), encoding="utf-8")
    assert cli.main(["status", str(other)]) == 2
    told = capsys.readouterr().err
    check_terminal(told)
    assert told.startswith("error: ")


@pytest.mark.parametrize("screen", [True, False])
def test_the_views_while_a_study_runs(screen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return screen

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "3000")
    stream = Stream()
    view = Console({"search": 2, ALL: 1}, f"accuracy{ALL}", "maximize", stream=stream)
    params: Mapping[str, Any] = {"model.padding.kind": ALL}
    trial = Trial(f"search{ALL}", "search", "0", 0, 1, small_space().base, params)
    view.trial_started(trial)
    view.trial_reported(trial, 10, {f"accuracy{ALL}": 0.5})
    view.notice(ALL)
    if screen:
        assert view._live is not None
        view._live.refresh()
    view.trial_finished(trial, Outcome(State.COMPLETE, 0.5, 10, {}, 1.0, reason=ALL))
    view.close()
    text = stream.getvalue()
    if screen:
        text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", text)  # rich's own colours and cursor
    check_terminal(text)
    assert r"\x1b[31m" in text and "[red]red[/red]" in text


def test_tables_at_the_end(study: Path) -> None:
    summary = Summary(
        study=ALL,
        folder=study,
        interrupted=False,
        objective=METRIC,
        counts={},
        test_openings=0,
        seconds=1.0,
        reasons={ALL: 1},
        best=None,
        winner=None,
        rows=(Row(ALL, ALL, False, {}, {METRIC: Cell.of([0.5, 0.6])}),),
        finalists=(),
        notes=(ALL,),
    )
    out = io.StringIO()
    for table in summary.tables():
        RichConsole(file=out, width=4000, force_terminal=False).print(table)
    check_terminal(out.getvalue())
    assert RICH in out.getvalue()
    check_markdown(summary.markdown())
    check_markdown(note.closing(summary))


def test_an_error_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    say_error(str(UserError(ALL, ALL, fix=ALL)))
    told = capsys.readouterr().err
    check_terminal(told)
    assert RICH in told
