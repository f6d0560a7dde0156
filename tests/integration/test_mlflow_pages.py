"""A real study on a real MLflow server, as a reviewer sees it in a browser.

``AMMPL_PICTURES=DIR`` keeps pictures of the pages there: those of docs/review.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from mlflow.tracking import MlflowClient
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.integration.browser import chromium
from tests.integration.conftest import Tracked
from tests.integration.mlflow_store import children, parent

SECONDS = 90
"""How long a page may take to show something on a busy machine."""


class Pages:
    """The UI's pages of a study."""

    def __init__(self, browser: webdriver.Chrome, tracked: Tracked):
        self.browser = browser
        self._uri = tracked.uri
        run = parent(tracked.uri, tracked.study.folder)
        self.experiment, self.run = run.info.experiment_id, run.info.run_id

    def open(self, page: str) -> None:
        self.browser.get("about:blank")  # else a page that differs after the # alone is not loaded
        self.browser.get(f"{self._uri}/#/{page}")

    def wait(self, what: str, condition: Callable[[], Any]) -> Any:
        """Return the first true value of a condition."""
        waiting = WebDriverWait(self.browser, SECONDS, 0.2, ignored_exceptions=[WebDriverException])
        return waiting.until(lambda browser: condition(), what)

    def has(self, *texts: str) -> None:
        """Wait until the page has all texts, folded ones included."""
        for text in texts:
            self.wait(f"no {text!r}", lambda text=text: text in self.text())

    def text(self) -> str:
        return str(self.browser.execute_script("return document.body.textContent"))

    def picture(self, name: str) -> None:
        if folder := os.environ.get("AMMPL_PICTURES"):
            self.browser.find_element(By.TAG_NAME, "main").screenshot(str(Path(folder) / f"review_{name}.png"))


@pytest.fixture(scope="module")
def pages(tracked: Tracked, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    with chromium(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield Pages(browser, tracked)


def test_the_studys_page_says_what_was_asked_and_what_came_out(pages: Pages, tracked: Tracked) -> None:
    assert tracked.study.summary is not None
    with tracked.study.ui(tracked.uri) as interface:
        pages.open(interface.address.partition("/#/")[2])
    pages.has("smoke-1", "Three trials of four steps", f"Winner: trial {tracked.study.summary.winner}")
    pages.has("winner/test/accuracy/mean", "trials/complete", "digits", "tiny-glyph", "sampler")
    pages.has(*[run.info.run_name for run in list(children(tracked.uri, tracked.study.folder).values())[:3]])
    tables = pages.wait("no tables", lambda: pages.browser.find_elements(By.CSS_SELECTOR, "[data-testid^=note] table"))
    assert "validation/accuracy" in tables[0].get_attribute("textContent")
    assert {"Runs", "Models"} <= set(pages.browser.find_element(By.TAG_NAME, "aside").text.split())
    [unfold] = pages.browser.find_elements(By.XPATH, "//main//*[text()='Show more']")
    script = "arguments[0].click(); arguments[1].scrollIntoView()"
    pages.browser.execute_script(script, unfold, _heading(pages, "Tags"))
    pages.picture("study")


def _heading(pages: Pages, text: str) -> WebElement:
    return pages.browser.find_element(By.XPATH, f"//main//*[text()='{text}']")


def test_trials_are_listed_by_name_state_and_objective(pages: Pages, tracked: Tracked) -> None:
    runs = children(tracked.uri, tracked.study.folder).values()
    searched = [run for run in runs if run.data.tags["phase"] == "search"]
    others = [run.info.run_name for run in runs if run.data.tags["phase"] != "search"]
    best_first = sorted(searched, key=lambda run: -run.data.metrics["objective"])
    condition = quote(f"tags.`mlflow.parentRunId` = '{pages.run}' and tags.phase = 'search'")
    # In the UI's own order, by time, trials are folded into their study.
    order = f"orderByKey={quote('metrics.`objective`')}&orderByAsc=false"
    pages.open(f"experiments/{pages.experiment}/runs?searchFilter={condition}&{order}")
    pages.has(*[run.info.run_name for run in searched], f"{len(searched)} matching runs")
    text = pages.text()
    assert not [name for name in others if name in text]
    values = {run.info.run_name: run.data.metrics["objective"] for run in searched}
    shown = sorted(values, key=text.index)
    assert [values[name] for name in shown] == [run.data.metrics["objective"] for run in best_first]
    pages.picture("trials")
    for state in {run.data.tags["state"] for run in searched}:
        names = {run.info.run_name for run in searched if run.data.tags["state"] == state}
        of_state = condition + quote(f" and tags.state = '{state}'")
        pages.open(f"experiments/{pages.experiment}/runs?searchFilter={of_state}&{order}")
        pages.has(*names, f"{len(names)} matching run")
        assert not [name for name in values.keys() - names if name in pages.text()]


def test_two_trials_are_compared_by_what_was_searched(pages: Pages, tracked: Tracked) -> None:
    runs = [r for r in children(tracked.uri, tracked.study.folder).values() if r.data.tags["phase"] == "search"][:2]
    ids = json.dumps([run.info.run_id for run in runs])
    pages.open(f"compare-runs?runs={quote(ids)}&experiments={quote(json.dumps([pages.experiment]))}")
    pages.has("Parallel Coordinates Plot", *[run.info.run_name for run in runs])
    first, second = (run.data.params for run in runs)
    differ = {name for name in first if first[name] != second[name]}
    assert differ <= {"model.mask.temperature", "model.padding.depth"}
    axes = pages.wait("no axes", lambda: pages.browser.find_elements(By.CLASS_NAME, "axis-title"))
    drawn = {axis.get_attribute("data-unformatted") for axis in axes}
    assert drawn & first.keys() == differ
    pages.picture("compare")


def test_the_report_opens_within_mlflow(pages: Pages) -> None:
    pages.open(f"experiments/{pages.experiment}/runs/{pages.run}/artifacts/report/report.html")
    frame = pages.wait("no page", lambda: pages.browser.find_element(By.CSS_SELECTOR, "iframe.mlflow-html-iframe"))
    pages.picture("report")
    pages.browser.switch_to.frame(frame)
    try:
        pages.wait("not drawn", lambda: pages.browser.find_elements(By.CSS_SELECTOR, "body[data-ready=true]"))
        pages.has("Answer", "reaches test/accuracy")
        assert pages.browser.find_elements(By.CSS_SELECTOR, "figure svg")
    finally:
        pages.browser.switch_to.default_content()


def test_the_winners_masks_are_shown(pages: Pages) -> None:
    pages.open(f"experiments/{pages.experiment}/runs/{pages.run}/artifacts/winner/masks.png")
    script = "return [...document.images].some(i => i.alt == 'winner/masks.png' && i.complete && i.naturalWidth > 100)"
    pages.wait("no picture", lambda: pages.browser.execute_script(script))


def test_the_winner_is_a_model_of_the_experiment(pages: Pages, tracked: Tracked) -> None:
    [model] = MlflowClient(tracked.uri).search_logged_models([pages.experiment], f"source_run_id = '{pages.run}'")
    pages.open(f"experiments/{pages.experiment}/models/{model.model_id}")
    pages.has(model.name, "test/accuracy/mean", "model.padding.depth", "smoke-1")
