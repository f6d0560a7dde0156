from __future__ import annotations

from ammpl.study.result.labels import params_text, run_name, short_names, symbols_text, value_text
from tests.study.scripted import other_trial, trial


def test_names_are_cut_to_what_tells_them_apart() -> None:
    names = ["model.mask.temperature", "model.padding.depth", "a.x.rate", "b.x.rate", "x.rate"]
    assert short_names(names) == {
        "model.mask.temperature": "temperature",
        "model.padding.depth": "depth",
        "a.x.rate": "a.x.rate",
        "b.x.rate": "b.x.rate",
        "x.rate": "x.rate",
    }


def test_values_read_as_in_a_space_file() -> None:
    assert [value_text(value) for value in (True, None, 0.123456, 16, 2e-5, "clamp")] == [
        "true",
        "null",
        "0.123",
        "16",
        "2e-05",
        "clamp",
    ]


def test_runs_are_named_by_number_and_parameters_or_by_key() -> None:
    searched = trial(7, mask__temperature=0.3141, padding__depth=2)
    assert run_name(searched) == "007 tau=0.314 J=2"
    assert params_text(searched.params) == "temperature=0.314 depth=2"
    assert run_name(trial(8)) == "008"
    assert run_name(other_trial("test", "coop", 3)) == "test-coop-r3"


def test_two_of_one_symbol_are_told_apart() -> None:
    params = {"model.padding.width": 1, "model.mask.width": 2, "model.text.length": 4}
    assert symbols_text(params) == "padding.width=1 mask.width=2 length=4"
