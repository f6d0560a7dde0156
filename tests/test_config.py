from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ammpl.config import FIELD_DEFAULTS, FIELD_NAMES, METHODS, SeedConfig, TrialConfig, resolve
from ammpl.config.methods import Methods
from ammpl.errors import UserError


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resolves_with_its_own_settings(method):
    config = resolve(method, {})
    assert config.method == method
    assert TrialConfig.model_validate_json(config.canonical_json()) == config


def test_identity_is_the_content():
    a = resolve("ammpl", {"model.mask.temperature": 1, "training.steps": 50})
    b = resolve("ammpl", {"training.steps": 50, "model.mask.temperature": 1.0})
    assert a == b and a.sha256 == b.sha256
    assert a.sha256 != resolve("ammpl", {"training.steps": 51}).sha256
    # The identity of a published configuration may only change together with the format's version.
    assert len(a.sha256) == 64


def test_flat_and_back():
    config = resolve("cocoop", {"data.shots": 4})
    assert list(config.flat()) == list(FIELD_NAMES)
    assert config.with_values({}) == config
    assert config.with_values({"data.shots": 2}).data.shots == 2


def test_published_settings_of_the_baselines():
    """The protocol's table: SGD, lr .002, and epochs by shots."""
    assert [resolve("coop", {"data.shots": shots}).training.epochs for shots in (1, 2, 4, 8, 16)] == [
        50, 100, 100, 200, 200,
    ]  # fmt: skip
    cocoop = resolve("cocoop", {})
    assert (cocoop.training.epochs, cocoop.training.batch_size, cocoop.training.learning_rate) == (10, 1, 0.002)
    assert resolve("coop", {"training.steps": 50}).training.epochs is None


@pytest.mark.parametrize(
    ("method", "data", "expected"),
    [
        ("vpt", {}, (0.0025, 5, 4, None, 12)),
        ("vpt", {"data.task": "base_to_new"}, (0.0025, 5, 4, None, 12)),
        ("maple", {"data.shots": 1}, (0.0035, 5, 4, 2, 9)),
        ("maple", {"data.task": "base_to_new"}, (0.0035, 5, 4, 2, 9)),
        ("maple", {"data.task": "cross_dataset", "data.name": "imagenet"}, (0.0026, 2, 4, 2, 3)),
    ],
)
def test_published_settings_of_the_methods_with_tokens(method, data, expected):
    def settings(backbone):
        config = resolve(method, {"backbone.name": backbone, **data})
        training, model = config.training, config.model
        assert (training.optimizer, training.weight_decay, training.schedule) == ("sgd", 5e-4, "coop")
        return training.learning_rate, training.epochs, training.batch_size, model.text.length, model.tokens.depth

    assert settings("ViT-B-16") == expected
    assert settings("tiny-glyph") == (*expected[:-1], expected[-1] // 3)  # 4 blocks for 12
    assert resolve("vpt", {}).model.text.template == "a photo of a {}."
    assert resolve("vpt", {}).model.tokens.count == 8
    assert resolve("maple", {}).model.text.init == "a photo of a"


MISTAKES = [
    ("amml", {}, "unknown method, got 'amml'. Fix: did you mean 'ammpl'"),
    (
        "ammpl",
        {"model.mask.temprature": 1.0},
        "model.mask.temprature: unknown name. Fix: did you mean 'model.mask.temp",
    ),
    ("ammpl", {"model.mask.kind": "lerned"}, "model.mask.kind: must be 'learned'.* Fix: did you mean 'learned'"),
    ("ammpl", {"training.steps": "100"}, "training.steps: must be a valid integer, got '100'"),
    ("ammpl", {"training.steps": True}, "training.steps: must be a valid integer, got True"),
    (
        "ammpl",
        {"backbone.precision": "fp16"},
        "backbone.precision: must be 'fp32', 'tf32', 'bf16' or 'auto', got 'fp16'",
    ),
    ("ammpl", {"backbone.compile": "yes"}, "backbone.compile: must be a valid boolean, got 'yes'"),
    ("ammpl", {"data.shots": 0}, "data.shots: must be greater than or equal to 1, got 0"),
    (
        "ammpl",
        {"training.learning_rate": float("nan")},
        "learning_rate: must be a finite number, got nan",
    ),
    ("ammpl", {"training.steps": 5, "training.epochs": 5}, "training: give either 'steps' or 'epochs'"),
    ("ammpl", {"training.schedule": "coop"}, "'schedule: coop' is stepped by the epoch"),
    ("ammpl", {"model.text.context": "fixed"}, "adds to a learned text context"),
    ("ammpl", {"model.text.init": "random"}, "'init: random' needs a 'length'"),
    ("ammpl", {"model.tokens.kind": "visual"}, "needs mask.kind 'none' and interaction.direction 'none', got 'le"),
    ("maple", {"model.text.context": "class"}, "'coupled' reads the context that all classes share"),
    ("vpt", {"model.tokens.kind": "coupled"}, "'coupled' reads the context that all classes share"),
    ("coop", {"model.tokens.kind": "visual"}, "'coop' is defined by model.tokens.kind = 'none', got 'visual'"),
    ("ammpl", {"model.text.template": "no name"}, "must hold '{}' exactly once"),
    (
        "ammpl",
        {"model.candidates": 8, "model.mask.scope": "task"},
        "'candidates' spares .* got 'task' and 'learned'",
    ),
    ("coop", {"model.candidates": 8}, "'candidates' spares image passes"),
    ("ammpl", {"model.text.context": "class", "data.task": "base_to_new"}, "no context for new classes"),
    (
        "coop",
        {"model.mask.kind": "learned"},
        "'coop' is defined by model.mask.kind = 'none', got 'learned'",
    ),
    ("zero_shot", {"training.steps": 5}, "method 'zero_shot' is defined by training.steps = 0"),
    (
        "ammpl",
        {"model.text.context": "fixed", "model.interaction.direction": "none", "model.mask.kind": "none"},
        "nothing is learned here",
    ),
]


@pytest.mark.parametrize(("method", "values", "message"), MISTAKES)
def test_bad_values_are_refused_with_field_rule_and_value(method, values, message):
    with pytest.raises(UserError, match=message) as caught:
        resolve(method, values, "space.yaml: fixed")
    assert str(caught.value).startswith("space.yaml: fixed")
    assert "\n" not in str(caught.value)


scalars = st.one_of(st.none(), st.booleans(), st.integers(-10, 10**6), st.floats(), st.text(max_size=8))


@given(st.sampled_from(sorted(METHODS)), st.dictionaries(st.sampled_from(FIELD_NAMES) | st.text(max_size=5), scalars))
def test_any_values_resolve_or_are_refused(method, values):
    try:
        config = resolve(method, values)
    except UserError as error:
        assert str(error)
        return
    assert resolve(method, {**config.flat(), "method": method}).sha256 == config.sha256


@given(st.sampled_from(FIELD_NAMES))
def test_defaults_stand_for_themselves(name):
    assert resolve("ammpl", {name: FIELD_DEFAULTS[name]}) == resolve("ammpl", {})


def test_repeats_share_data_and_differ_in_the_rest():
    first, second = SeedConfig.of_repeat(0, 1), SeedConfig.of_repeat(0, 2)
    assert (first.data, second.data) == (1, 2)
    assert len({first.init, first.noise, second.init, second.noise}) == 4
    assert SeedConfig.of_repeat(0, 1) == first
    assert SeedConfig.of_repeat(1, 1).data == 1 and SeedConfig.of_repeat(1, 1).init != first.init
    assert SeedConfig.of_repeat(0, 0).data == 0


@pytest.mark.parametrize(
    ("data", "epochs", "init", "length"),
    [
        ({"data.shots": 1}, 50, "random", 16),
        ({"data.shots": 4}, 100, "random", 16),
        ({"data.shots": 16}, 200, "random", 16),
        ({"data.name": "imagenet"}, 50, "random", 16),
        ({"data.task": "base_to_new", "data.shots": 4}, 200, "a photo of a", None),
        ({"data.task": "pseudo_new"}, 200, "a photo of a", None),
        ({"data.task": "base_to_new", "data.name": "imagenet"}, 50, "a photo of a", None),
        ({"data.task": "cross_dataset", "data.name": "imagenet"}, 50, "a photo of a", None),
        ({"data.task": "domain_generalisation"}, 50, "a photo of a", None),
    ],
)
def test_coop_is_published_with_settings_for_each_task(data, epochs, init, length):
    config = resolve("coop", data)
    assert (config.training.epochs, config.training.steps) == (epochs, None)
    assert (config.model.text.init, config.model.text.length) == (init, length)
    assert config.training.batch_size == 32 and config.training.schedule == "coop"
    cocoop = resolve("cocoop", data)
    assert (cocoop.training.epochs, cocoop.training.batch_size, cocoop.model.text.init) == (10, 1, "a photo of a")
    # What is written goes before what was published.
    assert resolve("coop", {**data, "model.text.init": "random", "model.text.length": 4}).model.text.length == 4
    assert resolve("coop", {**data, "training.steps": 7}).training.epochs is None


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package of one module with some methods, as pip would leave it."""

    def install(source, **entries):
        (tmp_path / "added_methods.py").write_text(source)
        info = tmp_path / "added_methods-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: added-methods\nVersion: 1.0\n")
        lines = [f"{name} = added_methods:{thing}" for name, thing in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(["[ammpl.methods]", *lines]))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "added_methods", raising=False)

    return install


def test_an_installed_package_adds_a_method(package):
    source = "from ammpl.config import Method\nMINE = Method(reads=('model.interaction.width',))\nOTHER = 3\n"
    package(source, mine="MINE", coop="MINE", other="OTHER", absent="ABSENT")
    methods = Methods({"coop": METHODS["coop"]})
    assert list(methods) == ["coop", "mine", "other", "absent"] and len(methods) == 4
    assert "added_methods" not in sys.modules  # nothing is imported before it is asked for
    assert methods["mine"].reads == ("model.interaction.width",) and methods["mine"] is methods["mine"]
    assert methods["coop"] is METHODS["coop"]  # no package can take the name
    assert methods.packages == ["added-methods"]
    with pytest.raises(UserError, match="method other: must be a Method, added_methods:OTHER is not, got 3"):
        methods["other"]
    with pytest.raises(
        UserError, match=r"method absent: cannot be imported from added_methods:ABSENT \(AttributeError"
    ):
        methods["absent"]
    with pytest.raises(KeyError):
        methods["nowhere"]
