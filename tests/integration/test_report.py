"""``python tune.py report`` on a real search and a real ablation, opened in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from ammpl import cli
from ammpl.study.space.ablation_space import parse_ablation
from ammpl.study.space.search_space import load_space
from ammpl.study.study import Options, run_study
from tests.integration.browser import chromium

ROOT = Path(__file__).resolve().parents[2]

ABLATION: dict[str, Any] = {
    "version": 1,
    "kind": "ablation",
    "name": "masks",
    "description": "What the probability matrix is worth.",
    "fixed": {"data.shots": 2, "data.validation_shots": 2, "training.steps": 3, "training.batch_size": 2},
    "reference": "learned",
    "variants": {"none": {"model.mask.kind": "none"}, "learned": {"model.mask.scope": "class"}},
    "repeats": [1, 2],
    "smallest_effect": 0.01,
}


@pytest.fixture(scope="module")
def studies(ray_cluster: None, empty_sqlite_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The smoke study and an ablation, each with its report, logged to MLflow."""
    folder = tmp_path_factory.mktemp("studies")
    shutil.copy(empty_sqlite_store, folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    spaces = {
        "smoke": load_space(ROOT / "search_spaces" / "smoke.yaml"),
        "masks": parse_ablation(ABLATION, "masks.yaml"),
    }
    found = {}
    for name, space in spaces.items():
        run_study(space, Options(output=folder / name, tracking_uri=uri, concurrency=1, quiet=True))
        assert cli.main(["report", str(folder / name)]) == 0
        found[name] = folder / name
    return found


def test_the_report_is_an_artifact_of_the_studys_run(studies: dict[str, Path]) -> None:
    for folder in studies.values():
        run = json.loads((folder / "mlflow.json").read_text())
        client = MlflowClient(run["tracking_uri"])
        logged = {artifact.path for artifact in client.list_artifacts(run["run_id"], "report")}
        assert logged == {"report/report.html", "report/tables", "report/figures"}


def test_what_a_real_ablation_left_is_on_the_page(studies: dict[str, Path]) -> None:
    page = (studies["masks"] / "report" / "report.html").read_text()
    assert "Distances between classes' masks, learned (reference)" in page.replace("&#x27;", "'")
    assert "Masks of learned (reference)" in page
    assert "learned is better than none by 0.01 or more: <b" in page
    assert "The test split was not opened" in page


def test_latex_compiles(studies: dict[str, Path], tmp_path: Path) -> None:
    """Every table is balanced and whole; where pdflatex is at hand, it compiles."""
    tables = [path for folder in studies.values() for path in sorted((folder / "report" / "tables").glob("*.tex"))]
    assert len(tables) > 10
    for path in tables:
        _parse(path.read_text())
    if (pdflatex := shutil.which("pdflatex")) is not None:
        head = "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}\\begin{document}\n"
        text = head + "".join(f"\\input{{{path}}}\\clearpage\n" for path in tables) + "\\end{document}\n"
        (tmp_path / "all.tex").write_text(text)
        subprocess.run([pdflatex, "-halt-on-error", "all.tex"], cwd=tmp_path, check=True, capture_output=True)


def _parse(latex: str) -> None:
    """Check groups, environments, and that each line of a table has as many cells as the table has columns."""
    plain = latex.replace(r"\{", "").replace(r"\}", "")
    depth = 0
    for letter in plain:
        depth += (letter == "{") - (letter == "}")
        assert depth >= 0
    assert depth == 0
    assert plain.replace(r"\$", "").count("$") % 2 == 0
    assert latex.isascii() or all(ord(letter) < 256 for letter in latex), latex  # what T1 fonts have
    for word in ("table", "tabular"):
        assert latex.count(f"\\begin{{{word}}}") == latex.count(f"\\end{{{word}}}") == 1
    columns = latex.split("\\begin{tabular}{")[1].split("}")[0]
    lines = [line for line in latex.splitlines() if line.endswith(r" \\")]
    assert len(lines) > 1
    for line in lines:
        assert line.replace(r"\&", "").count("&") == len(columns) - 1, line
        assert not set("%#_^~") & set(line.replace(r"\%", "").replace(r"\#", "").replace(r"\_", "")), line


def test_the_page_opens_in_a_browser_with_every_figure_drawn(studies: dict[str, Path], tmp_path: Path) -> None:
    with chromium(tmp_path / "profile") as browser:
        for name, folder in studies.items():
            browser.get((folder / "report" / "report.html").as_uri())
            assert browser.execute_script("return document.body.dataset.ready") == "true"
            saved = {path.stem for path in (folder / "report" / "figures").glob("*.svg")}
            figures = browser.find_elements(By.CSS_SELECTOR, "figure:has(svg)")
            assert {figure.get_attribute("id").removeprefix("figure-") for figure in figures} == saved
            assert saved
            for figure in figures:
                box = figure.find_element(By.TAG_NAME, "svg").rect
                assert box["width"] > 200 and box["height"] > 80
                marks = figure.find_elements(By.CLASS_NAME, "mark")
                assert any(mark.rect["width"] + mark.rect["height"] > 0 for mark in marks), figure.get_attribute("id")
            for picture in browser.find_elements(By.TAG_NAME, "img"):
                assert browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 0", picture)
            # A row of a table lights what figures draw of it, and a drawn thing tells what it is.
            row = browser.find_element(By.CSS_SELECTOR, "tr[data-key]")
            ActionChains(browser).move_to_element(row).perform()
            lit = browser.find_elements(By.CSS_SELECTOR, ".mark.lit, tr.lit")
            assert row in lit
            assert {element.get_attribute("data-key") for element in lit} == {row.get_attribute("data-key")}
            mark = next(m for m in browser.find_elements(By.CLASS_NAME, "mark") if m.rect["width"] > 2)
            ActionChains(browser).move_to_element(mark).perform()
            assert browser.find_element(By.ID, "tip").is_displayed()
            assert browser.get_log("browser") == [], name
