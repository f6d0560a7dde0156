"""One trial of a study again: the same, or the first value that is not."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ammpl import cli
from ammpl.errors import UserError
from ammpl.study.engine.worker import THREAD_VARIABLES
from ammpl.study.plan.ablation_plan import AblationPlan, StudyPlan
from ammpl.study.plan.search_plan import Plan
from ammpl.study.record.environment import describe_environment, differences
from ammpl.study.record.event_log import FILE
from ammpl.study.record.records import Records
from ammpl.study.rerun_trial import Verdict, rerun_trial
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.search_space import SearchSpace
from ammpl.study.space.space_file import StudySpace, parse_study_space
from ammpl.study.trial import Trial
from ammpl.yaml_file import dump_yaml
from tests.study.fakes import DEPTH, WIDTH, execute, log_to_change, run_inline, small_space

Curve = Iterator[tuple[int, dict[str, float]]]
FEW = {DEPTH: {"type": "int", "low": 1, "high": 4}, WIDTH: {"type": "categorical", "choices": [8, 16]}}
ABLATION = {
    "version": 1,
    "kind": "ablation",
    "name": "masks",
    "fixed": {"model.mask.scope": "task", "training.steps": 30},
    "reference": "learned",
    "variants": {"none": {"model.mask.kind": "none"}, "learned": {}},
    "repeats": [1, 2],
    "test": True,
}


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Threads and devices are those of the record while its trial runs, and afterwards what they were."""
    before = dict(os.environ)
    yield
    assert {name: os.environ.get(name) for name in (*THREAD_VARIABLES, "CUDA_VISIBLE_DEVICES")} == {
        name: before.get(name) for name in (*THREAD_VARIABLES, "CUDA_VISIBLE_DEVICES")
    }


def _study(folder: Path, space: StudySpace, run: Any = execute) -> dict[str, dict[str, Any]]:
    """Run a study into a folder; return the ends of its trials by key."""
    folder.mkdir()
    (folder / "study.yaml").write_text(dump_yaml(space.resolved()))
    (folder / "environment.json").write_text(
        json.dumps(describe_environment({}, []) | {"trial": {"cpus": 1, "gpus": 0}})
    )
    records = Records(folder, space)
    plan: StudyPlan
    if isinstance(space, AblationSpace):
        plan = AblationPlan(space, folder, records)
    else:
        plan = Plan(space, space.name, folder, records)
    run_inline(plan, folder, run)
    records.close()
    events = map(json.loads, (folder / FILE).read_text().splitlines())
    return {event["key"]: event for event in events if event["event"] == "finished"}


def _again(folder: Path, word: str, run: Any = execute, **more: Any) -> Verdict:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    verdict = rerun_trial(folder, word, execute=run, **more)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return verdict


def test_every_trial_of_a_search_matches(tmp_path: Path) -> None:
    study = tmp_path / "study"
    ends = _study(study, small_space(seed=3, confirm={"top": 1, "repeats": 1}, budget={"trials": 20}))
    assert {end["state"] for end in ends.values()} == {"COMPLETE", "PRUNED", "FAILED"}
    assert {key.partition("-")[0] for key in ends} == {"search", "confirm", "test"}
    for key, end in ends.items():
        verdict = _again(study, key)
        assert verdict.difference is None, verdict.lines()
        assert verdict.surroundings is not None
        assert verdict.surroundings["machine"] == verdict.surroundings["device"] == []
        assert verdict.lines()[-1].startswith(f"match: {key}, {end['state']} at step {end['step']}")
        if end["state"] == "FAILED":
            assert end["reason"] in verdict.lines()[-1]
    assert _again(study, "0").key == "search-0000"


def test_what_was_answered_from_a_record_matches_when_it_runs(tmp_path: Path) -> None:
    ends = _study(tmp_path / "study", small_space(seed=3, confirm=None, parameters=FEW, sampler={"name": "random"}))
    answered = [key for key, end in ends.items() if end["duplicate_of"]]
    assert len(answered) > 2
    assert all(_again(tmp_path / "study", key).difference is None for key in answered)


def test_repeats_and_ablations_match(tmp_path: Path) -> None:
    space = small_space(
        repeats=[1, 2, 3], budget={"trials": 6}, confirm=None, pruner={"name": "median", "startup_trials": 1}
    )
    ends = _study(tmp_path / "repeats", space)
    assert {end["state"] for end in ends.values()} >= {"COMPLETE", "PRUNED"}
    assert all(_again(tmp_path / "repeats", key).difference is None for key in ends)
    with pytest.raises(UserError, match=r"trial 0: is one of several repeats\. Fix: name one of search-0000-r1, "):
        _again(tmp_path / "repeats", "0")

    def diverges(trial: Trial, folder: Path) -> Curve:
        """One variant ends in an infinite value, which no exception tells of."""
        (folder / "learnables.safetensors").touch()
        if trial.phase == "test":
            yield 0, {"test/accuracy": 0.5}
        else:
            yield 10, {"validation/accuracy": float("inf") if trial.candidate == "none" else 0.5}

    ends = _study(tmp_path / "ablation", parse_study_space(ABLATION, "masks.yaml"), diverges)
    assert ends["ablation-none-r1"]["reason"] == "the objective is not finite at step 10"
    assert all(_again(tmp_path / "ablation", key, diverges).difference is None for key in ends)


def test_values_that_contradict_each_other_match_by_their_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SearchSpace.config
    problem = "do not go together"

    def picky(self: SearchSpace, params: Any, repeat: int) -> Any:
        if params.get(DEPTH) == 3:
            raise UserError("parameters", problem)
        return honest(self, params, repeat)

    monkeypatch.setattr(SearchSpace, "config", picky)
    ends = _study(tmp_path / "study", small_space(seed=3, confirm=None))
    key = next(key for key, end in ends.items() if end["reason"] == "parameters: do not go together")
    assert _again(tmp_path / "study", key).difference is None
    problem = "are too many"
    assert _again(tmp_path / "study", key).difference == (
        "FAILED (parameters: do not go together) then, FAILED (parameters: are too many) now"
    )
    monkeypatch.setattr(SearchSpace, "config", honest)
    assert _again(tmp_path / "study", key).difference == (
        "FAILED (parameters: do not go together) then, goes on to step 10 now"
    )


Metrics = dict[str, float]


def _lacks_the_loss(step: int, metrics: Metrics) -> Metrics:
    return {"validation/accuracy": metrics["validation/accuracy"]}


def _has_more(step: int, metrics: Metrics) -> Metrics:
    return {**metrics, "more": 1.0}


def _is_off_at_30(step: int, metrics: Metrics) -> Metrics:
    return {**metrics, "train/loss": metrics["train/loss"] + 1e-9 * (step == 30)}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_is_off_at_30, r"step 30, train/loss: \S+ then, \S+ now"),
        (_has_more, r"step 10, more: nothing then, 1\.0 now"),
        (_lacks_the_loss, r"step 10, train/loss: \S+ then, nothing now"),
    ],
)
def test_the_first_value_that_differs_is_named(
    tmp_path: Path, change: Callable[[int, Metrics], Metrics], text: str
) -> None:
    study = tmp_path / "study"
    _study(study, small_space(seed=3, confirm=None, pruner={"name": "none"}, budget={"trials": 1}))

    def otherwise(trial: Trial, folder: Path) -> Curve:
        for step, metrics in execute(trial, folder):
            yield step, change(step, metrics)

    said: list[str] = []
    verdict = _again(study, "0", otherwise, say=said.append)
    assert verdict.difference is not None
    assert re.fullmatch(text, verdict.difference)
    assert verdict.lines()[-1] == f"different: search-0000: {verdict.difference}"
    assert said[0] == "search-0000: running again, in this process"


def test_another_end_is_named(tmp_path: Path) -> None:
    study = tmp_path / "study"
    ends = _study(study, small_space(seed=3, confirm=None, budget={"trials": 20}))
    key = {end["state"]: end["key"] for end in ends.values()}

    def breaks(trial: Trial, folder: Path) -> Curve:
        yield from [next(execute(trial, folder))]
        raise RuntimeError("no more")

    def endless(trial: Trial, folder: Path) -> Curve:
        try:
            yield from execute(trial, folder)
        except RuntimeError:
            yield 30, {}
        yield 90, {}

    assert _again(study, key["COMPLETE"], breaks).difference == (
        "an evaluation at step 20 then, FAILED (RuntimeError: no more) now"
    )
    assert _again(study, key["COMPLETE"], endless).difference == "COMPLETE then, goes on to step 90 now"
    failed = "FAILED (RuntimeError: loss is nan at step 30) then"
    assert _again(study, key["FAILED"], endless).difference == f"{failed}, goes on to step 30 now"

    def otherwise(trial: Trial, folder: Path) -> Curve:
        try:
            yield from execute(trial, folder)
        except RuntimeError:
            raise RuntimeError("out of memory") from None

    assert _again(study, key["FAILED"], otherwise).difference == f"{failed}, FAILED (RuntimeError: out of memory) now"
    assert _again(study, key["PRUNED"], endless).difference is None  # it is stopped where it was


def test_what_has_no_end_to_compare_with_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    _study(study, small_space(seed=3, confirm={"top": 1, "repeats": 1}, budget={"trials": 4}))
    for word in ("search-0044", "44", "-1", "test-cop-r1"):
        assert cli.main(["rerun-trial", str(study), word]) == 2
        assert "did not begin in this study" in capsys.readouterr().err
    assert cli.main(["rerun-trial", str(tmp_path), "1"]) == 2
    tested = next(key for key in _keys(study) if key.startswith("test-0"))
    (study / "checkpoints" / tested.replace("test", "confirm") / "learnables.safetensors").unlink()
    with pytest.raises(UserError, match=rf"learnables\.safetensors: is missing, which {tested} tested"):
        _again(study, tested)
    lines = log_to_change(study).splitlines(keepends=True)
    ended = [line for line in lines if '"finished"' in line]
    log = "".join(line for line in lines if line != ended[0])
    (study / FILE).write_text(log)
    with pytest.raises(UserError, match=r"search-0000: has not ended: .* python tune\.py resume"):
        _again(study, "0")
    lost = {**json.loads(ended[0]), "state": "LOST", "reason": "its worker process died 3 times"}
    (study / FILE).write_text("".join(json.dumps(lost) + "\n" if line == ended[0] else line for line in lines))
    with pytest.raises(UserError, match=r"search-0000: was lost \(its worker process died 3 times\)"):
        _again(study, "0")
    (study / FILE).write_text("".join(lines).replace('"training":{', '"training":{"later":1,'))
    with pytest.raises(UserError, match="has a configuration that this version of the program reads otherwise"):
        _again(study, "0")


def test_a_trial_that_took_too_long_matches_if_it_does_again(tmp_path: Path) -> None:
    study = tmp_path / "study"
    never = threading.Event()

    def hangs(trial: Trial, folder: Path) -> Curve:
        for step, metrics in execute(trial, folder):
            if step == 30:
                never.wait()
            yield step, metrics

    _study(study, small_space(seed=3, confirm=None, budget={"trials": 1, "trial_time": "1s"}))
    lines = list(map(json.loads, log_to_change(study).splitlines()))
    reason = "did not end within its time of 1 s (budget.trial_time)"
    then = [line for line in lines if line.get("step", 0) <= 20]  # two evaluations, and then
    then.append({**next(line for line in lines if line["event"] == "finished"), "state": "FAILED", "reason": reason})
    (study / FILE).write_text("".join(json.dumps(line) + "\n" for line in then))
    verdict = _again(study, "0", hangs)
    assert verdict.difference is None and verdict.compared == (2, 6)
    assert verdict.lines()[-1].endswith(f"FAILED at step 20 ({reason}); 2 evaluations, 6 values, to the last bit")
    assert _again(study, "0", execute).difference == f"FAILED ({reason}) then, COMPLETE now"


def _keys(study: Path) -> list[str]:
    return [event["key"] for event in map(json.loads, log_to_change(study).splitlines()) if "key" in event]


def test_what_differs_from_the_surroundings_of_then() -> None:
    then = {
        "platform": "Linux-1", "processor": "A", "cpus": 2, "python": "3.11.1", "gpus": ["H100"],
        "packages": {"torch": "2.1", "gone": "1"}, "code": {"commit": "abc", "modified": True}, "trial": {"gpus": 1},
    }  # fmt: skip
    assert differences(then, {**then, "code": {"commit": "abc", "modified": False}, "packages": {"torch": "2.2"}}) == {
        "machine": [],
        "versions": ["torch 2.1 then, 2.2 now", "gone 1 then, None now", "code: modified True then, False now"],
        "device": [],
    }
    other = {**then, "cpus": 4, "gpus": []}
    assert differences(then, other) == {
        "machine": ["cpus 2 then, 4 now"],
        "versions": ["code: modified since its commit, then and now"],
        "device": ["GPUs ['H100'] then, [] now"],
    }
    assert differences(then | {"trial": {"gpus": 0}}, other)["device"] == []
