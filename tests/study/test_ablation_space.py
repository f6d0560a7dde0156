"""The space file of an ablation: what it resolves to, and every mistake that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ammpl import cli
from ammpl.errors import UserError
from ammpl.study.space.ablation_space import AblationSpace, parse_ablation
from ammpl.study.space.space_file import parse_study_space
from ammpl.yaml_file import dump_yaml, parse_yaml
from tests.study.fakes import ABLATION, KIND, ablation_space


def test_a_variant_of_another_method_has_that_methods_settings(tmp_path: Path) -> None:
    variants = {"ammpl": {}, "coop": {"method": "coop"}, "quick": {"method": "coop", "training.steps": 3}}
    space = ablation_space(
        variants=variants, reference="ammpl", shots=[1, 16], fixed={**ABLATION["fixed"], "data.name": "dtd"}
    )
    one, sixteen = space.settings
    assert space.config("ammpl", 1, one).training.steps == 30
    coop = space.config("coop", 2, sixteen)
    assert (coop.method, coop.data.name, coop.data.shots, coop.seeds.data) == ("coop", "dtd", 16, 2)
    assert (coop.training.epochs, space.config("coop", 1, one).training.epochs) == (200, 50)  # as published
    assert space.config("quick", 1, one).training.steps == 3
    assert space.params("coop", one)["method"] == "coop" and space.params("ammpl", one)["method"] == "ammpl"
    again = parse_ablation(parse_yaml(dump_yaml(space.resolved()), "study.yaml"), "study.yaml")
    assert again.fixed["training.learning_rate"] == 0.01  # AMMPL's own, written out
    for cell in space.cells():
        assert again.config(cell.variant, cell.repeat, cell.setting) == space.config(
            cell.variant, cell.repeat, cell.setting
        )


def test_the_resolved_space_gives_the_same_configurations() -> None:
    space = ablation_space(test=True, seed=7, description="which mask")
    again = parse_study_space(parse_yaml(dump_yaml(space.resolved()), "study.yaml"), "study.yaml")
    assert isinstance(again, AblationSpace)
    assert again.resolved() == space.resolved()
    assert again.fixed["data.shots"] == 16  # every default written out
    for variant in space.variants:
        assert again.config(variant, 3) == space.config(variant, 3)


def test_what_follows_from_a_varied_field_is_left_to_follow() -> None:
    variants = {"one": {"data.shots": 1}, "all": {}}
    space = ablation_space(method="coop", fixed={}, variants=variants, reference="all")
    assert "training.epochs" not in space.resolved()["fixed"]
    again = parse_ablation(space.resolved(), "study.yaml")
    assert (again.config("one", 1).training.epochs, again.config("all", 1).training.epochs) == (50, 200)


def test_fixed_values_from_outside() -> None:
    space = ablation_space().with_fixed({"training.steps": 7}, "command line")
    assert space.config("none", 1).training.steps == 7
    with pytest.raises(UserError, match=r"command line: model.mask.kind: is what the variants vary \(none, random\)"):
        ablation_space().with_fixed({KIND: "none"}, "command line")


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"reference": "lerned"},
        "s.yaml: reference: must be one of the variants, got 'lerned'. Fix: did you mean 'l",
    ),
    ({"reference": None}, "s.yaml: reference: must be a valid string, got None"),
    ({"smallest_effect": 0.0}, "s.yaml: smallest_effect: must be greater than 0, got 0.0"),
    ({"smallest_effect": "1 %"}, "s.yaml: smallest_effect: must be a valid number, got '1 %'"),
    ({"smalest_effect": 0.1}, "s.yaml: smalest_effect: unknown key. Fix: did you mean 'smallest_effect'?"),
    (
        {"only": ["nune"]},
        "s.yaml: only: must name variants, or trials such as learned-r3, got 'nune'. Fix: did you mean 'none'?",
    ),
    ({"family": []}, "s.yaml: family: must name at least one variant; without the key all are in it, got []"),
    ({"family": ["none", "none"]}, "s.yaml: family: each variant must be named once"),
    ({"family": ["learned"]}, "s.yaml: family: must name variants other than the reference, got 'learned'"),
    ({"family": ["nune"]}, "s.yaml: family: must name variants other than the reference, got 'nune'. Fix: did y"),
    ({"family": "none"}, "s.yaml: family: must be a valid tuple, got 'none'"),
    ({"variants": {"learned": {}}}, "s.yaml: variants: must name at least two variants, the reference among them"),
    ({"variants": [1]}, "s.yaml: variants: must be a valid dictionary, got [1]"),
    ({"variants": {"a/b": {}, "learned": {}}}, "s.yaml: variants: 'a/b' cannot name a variant: at most 40 letter"),
    ({"variants": {1: {}, "learned": {}}}, "s.yaml: variants: 1 cannot name a variant"),
    ({"variants": {"Learned": {}, "learned": {}}}, "must differ in more than upper and lower case"),
    ({"variants": {"other": {}, "learned": {}}}, "s.yaml: variants.learned: is the same configuration as 'other'"),
    ({"variants": {"x": {KIND: "learned"}, "learned": {}}}, "variants.learned: is the same configuration as 'x'"),
    ({"variants": {"x": 3, "learned": {}}}, "s.yaml: variants.x: must be a valid dictionary, got 3"),
    (
        {"variants": {"x": {"model.mask.kin": "none"}, "learned": {}}},
        "variants.x: model.mask.kin: unknown name. F",
    ),
    ({"variants": {"x": {KIND: "nune"}, "learned": {}}}, "s.yaml: variants.x: model.mask.kind: must be 'learned'"),
    ({"variants": {"x": {KIND: [1]}, "learned": {}}}, "s.yaml: variants.x.model.mask.kind"),
    ({"variants": {"x": {"method": "cop"}, "learned": {}}}, "variants.x: method: unknown method, got 'cop'. Fix"),
    (
        {"variants": {"x": {"method": "coop", KIND: "learned"}, "learned": {}}},
        "variants.x: method 'coop' is defined by model.mask.kind = 'none', got 'learned'",
    ),
    ({"datasets": []}, "s.yaml: datasets: must list at least one; without the key it is the fixed value alone"),
    ({"datasets": ["digits", "digits"]}, "s.yaml: datasets: must differ"),
    ({"datasets": ["a/pets", "b/pets"]}, "s.yaml: datasets: must differ in their last part"),
    ({"datasets": "digits"}, "s.yaml: datasets: must be a valid tuple, got 'digits'"),
    ({"shots": [1, True]}, "s.yaml: shots.1: must be a valid integer, got True"),
    ({"shots": [1, 4, 1]}, "s.yaml: shots: must differ"),
    ({"shots": [0]}, "data.shots: must be greater than or equal to 1, got 0"),
    ({"shots": [1, "x"]}, "s.yaml: shots.1: must be a valid integer, got 'x'"),
    (
        {"shots": [1], "fixed": {"data.shots": 4}},
        "s.yaml: shots: lists what fixed sets too: data.shots. Fix: keep one",
    ),
    (
        {"datasets": ["dtd"], "variants": {"x": {"data.name": "digits"}, "learned": {}}},
        "s.yaml: datasets: lists what variants.x sets too: data.name",
    ),
    (
        {"shots": [1, 2], "variants": {"x": {"data.validation_shots": 0}, "learned": {}}},
        "s.yaml: variants.x: data.validation_shots: must be greater",
    ),
    ({"variants": {"x": {"seeds.data": 3}, "learned": {}}}, "variants.x: seeds.data: seeds come from the study's"),
    ({"repeats": [1]}, "s.yaml: repeats: must be at least two: one has no spread, so no interval, got [1]"),
    ({"repeats": [1, 1]}, "s.yaml: repeats: must differ: a repeat run twice is no second observation, got [1, 1]"),
    ({"repeats": [1, -2]}, "s.yaml: repeats: must be whole numbers, 0 or more, got [1, -2]"),
    ({"repeats": [1, True]}, "s.yaml: repeats: must be whole numbers, 0 or more"),
    ({"repeats": 5}, "s.yaml: repeats: must be a valid tuple, got 5"),
    ({"fixed": {"model.mask.scop": "task"}}, "s.yaml: fixed: model.mask.scop: unknown name. Fix: did you mean"),
    ({"parameters": {}}, "s.yaml: parameters: belongs to a search, and this is an ablation. Fix: remove it"),
    ({"sampler": {"name": "tpe"}}, "s.yaml: sampler: belongs to a search"),
    ({"pruner": {"name": "none"}}, "s.yaml: pruner: belongs to a search"),
    ({"budget": {"trials": 0}}, "s.yaml: budget.trials: must be greater than or equal to 1, got 0"),
    (
        {"budget": {"target": 0.9}},
        "s.yaml: budget: 'target' belongs to a search: an ablation compares all its variants",
    ),
    ({"budget": {"tiem": "1h"}}, "s.yaml: budget.tiem: unknown key. Fix: did you mean 'budget.time'?"),
    ({"confirm": None}, "s.yaml: confirm: belongs to a search"),
    ({"variant": {}}, "s.yaml: variant: unknown key. Fix: did you mean 'variants'?"),
    ({"method": "amppl"}, "s.yaml: method: is unknown, got 'amppl'. Fix: did you mean 'ammpl'?"),
    ({"kind": "ablatoin"}, "s.yaml: kind: is unknown, got 'ablatoin'. Fix: did you mean 'ablation'?"),
    ({"kind": 3}, "s.yaml: kind: is unknown, got 3. Fix: known: ablation, search"),
    ({"test": "yes"}, "s.yaml: test: must be a valid boolean, got 'yes'"),
    ({"objective": {"metric": "test/accuracy"}}, "s.yaml: objective.metric: tuning never sees the test split"),
    (
        {"objective": {"metrik": "x"}},
        "s.yaml: objective.metrik: unknown key. Fix: did you mean 'objective.metric'",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_study_space({**ABLATION, **changes}, "s.yaml")
    assert message in str(caught.value)


def test_a_missing_kind_or_key() -> None:
    with pytest.raises(UserError, match=r"s.yaml: has variants, as an ablation does, but no 'kind'. Fix: write 'kind"):
        parse_study_space({key: value for key, value in ABLATION.items() if key != "kind"}, "s.yaml")
    for key in ("reference", "variants", "name", "version"):
        with pytest.raises(UserError, match=f"s.yaml: {key}: is required"):
            parse_study_space({k: value for k, value in ABLATION.items() if k != key}, "s.yaml")


def test_a_dry_run_prints_the_resolved_ablation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "masks.yaml").write_text(dump_yaml(ABLATION))
    assert cli.main([str(tmp_path / "masks.yaml"), "--dry-run", "--full"]) == 0
    printed = parse_yaml(capsys.readouterr().out, "printed")
    assert printed == parse_yaml(dump_yaml(ablation_space().resolved()), "resolved")
