"""Everything a person can get wrong: a message with place, rule, value and fix, exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import save_file

from ammpl import cli
from ammpl.study import reachable
from tests.command_line import SPACE as SMALL
from tests.data.on_disk import picture

ROOT = Path(__file__).resolve().parents[1]

SPACE = SMALL + "confirm: null\n"
TEMPERATURE = "model.mask.temperature: {type: float, low: 0.1, high: 2.0}"

Refused = Callable[..., None]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run the command line in an empty folder with a space file; expect a message, code 2 and nothing new."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(SPACE)

    def run(message: str, *arguments: Any) -> None:
        before = sorted(tmp_path.rglob("*"))
        assert cli.main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert "Traceback" not in error
        assert error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before

    return run


@pytest.fixture(scope="module")
def connected_ray() -> Any:
    """A Ray of two CPUs, which the command line finds connected."""
    started = not ray.is_initialized()
    if started:
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    if started:
        ray.shutdown()


MISTAKES: list[tuple[str, str, str]] = [
    (SPACE, "", "space.yaml: is empty. Fix: start from search_spaces/default.yaml"),
    (SPACE, "# nothing yet\n", "space.yaml: is empty"),
    (SPACE, "just a sentence", "space.yaml: must be a mapping of keys such as 'name' and 'parameters', got 'just"),
    (SPACE, "a: [1", "space.yaml, line 1, column 6: is not valid YAML: expected ',' or ']'"),
    (SPACE, "[" * 100_000, "space.yaml: is nested too deeply (more than 20 levels)"),
    (SPACE, "a: &a [1]\nb: [*a, *a]", "space.yaml: must not use YAML aliases ('*name'). Fix: write the value out"),
    (SPACE, " " * (1 << 20) + "a", "space.yaml: must be smaller than 1048576 bytes, got 1048577"),
    (SPACE, "!!python/object/apply:os.system [touch ran]", "could not determine a constructor for the tag"),
    ("budget:", f"seed: 0x{'f' * 5000}\nbudget:", "column 7: is not valid YAML: a number with too many digits"),
    ("version: 1", "version: 2", "space.yaml: version: must be 1, got 2"),
    ("budget:", "budgets:", "space.yaml: budgets: unknown key. Fix: did you mean 'budget'?"),
    ("trials: 2", "trials: two", "space.yaml: budget.trials: must be a valid integer"),
    ("trials: 2", "trials: 0", "space.yaml: budget.trials: must be greater than or equal to 1, got 0"),
    ("data.shots: 1", "data.shots: '1'", "space.yaml: fixed: data.shots: must be a valid integer, got '1'"),
    ("data.shots: 1", "data.shot: 1", "fixed: data.shot: unknown name. Fix: did you mean 'data.shots'?"),
    ("high: 2.0", "high: 0.1", "parameters.model.mask.temperature: 'low' must be below 'high', got 0.1 and 0.1"),
    ("type: float", "type: flaot", "temperature.type: is unknown, got 'flaot'. Fix: did you mean 'float'?"),
    (TEMPERATURE, "{}", "space.yaml: parameters: must name at least one parameter to search"),
    (TEMPERATURE, TEMPERATURE + "\n  " + TEMPERATURE, "line 6, column 3: is not valid YAML: 'model.mask.temperat"),
    (TEMPERATURE, "model.mask.keep_rate:", "model.mask.keep_rate: must be a mapping with a 'type', got None"),
    (
        "model.mask.scope: task",
        "model.mask.kind: none",
        "space.yaml: parameters.model.mask.temperature: can never matter: it needs model.mask.kind 'learned', "
        "which is 'none'. Fix: remove it, or change model.mask.kind",
    ),
    (
        TEMPERATURE,
        "model.mask.kind: {type: categorical, choices: [binary, none]}\n  " + TEMPERATURE,
        "temperature: can never matter: it needs model.mask.kind 'learned', which never takes such a value",
    ),
    (
        "high: 2.0}",
        "high: 2.0, when: {model.mask.kind: none}}",
        "space.yaml: parameters: none is ever active: no 'when' holds with these fixed values",
    ),
    (
        TEMPERATURE,
        "model.mask.kind: {type: categorical, choices: [learned, none]}\n"
        "  model.mask.temperature: {type: float, low: 0.5, high: 0.9, when: {model.mask.kind: learned}}\n"
        "  model.padding.depth: {type: int, low: 1, high: 2, when: "
        "{model.mask.temperature: 0.7, model.mask.kind: none}}",
        "parameters.model.padding.depth.when: its conditions can never hold together, got {'model.mask.temp",
    ),
    (
        "high: 2.0}",
        "high: 2.0, when: {model.padding.depth: 2}}\n"
        "  model.padding.depth: {type: int, low: 1, high: 2, when: {model.mask.temperature: 1.0}}",
        "temperature.when.model.padding.depth: is searched further down. Fix: a condition looks back: move that",
    ),
    ("budget:", "method: copo\nbudget:", "space.yaml: method: is unknown, got 'copo'. Fix: did you mean 'coop'?"),
    ("budget:", "sampler: {name: tp}\nbudget:", "sampler.name: is unknown, got 'tp'. Fix: did you mean 'tpe'?"),
    ("budget:", "pruner: {name: medain}\nbudget:", "is unknown, got 'medain'. Fix: did you mean 'median'?"),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES)
def test_space_files(refused: Refused, tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "space.yaml").write_text(SPACE.replace(old, new))
    refused(message, "space.yaml", "--dry-run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.yaml"], "missing.yaml: cannot be read (No such file or directory)"),
        (["."], ".: cannot be read (Is a directory)"),
        (["--concurrency", "0"], "--concurrency: must be at least 1, got 0"),
        (["--gpus-per-trial", "-1"], "--gpus-per-trial: must be at least 0, got -1"),
        (["--dataset", "x" * 300], "data.name: unknown data set or folder"),
        (["--output", "x" * 300], "--output: cannot be used (File name too long)"),
        (["--data-root", "~nobody-here/x"], "~nobody-here/x: names the home of a user who does not exist"),
        (["--dataset", "digit"], "data.name: unknown data set or folder, got 'digit'. Fix: did you mean 'digits'?"),
        (["--backbone", "ViT-B-61"], "backbone.name: unknown backbone, got 'ViT-B-61'. Fix: did you mean 'ViT-B-16'?"),
        (["--backbone", "ViT-B-16"], "backbone.pretrained: ViT-B-16 needs a pretrained tag or a checkpoint file. Fix"),
        (["--backbone", "ViT-B-16", "--pretrained", "opena"], "neither a pretrained tag of ViT-B-16 nor a file, got"),
        (["--pretrained", "x.pt"], "backbone.pretrained: tiny-glyph has only its own weights, got 'x.pt'. Fix: leave"),
        (["--shots", "51"], "data.shots: class 'zero' of digits has 50 images there, got 51. Fix: at most 50"),
        (["--set", "model.padding.depth=99"], "model.padding.depth: tiny-glyph has 4 blocks to pad before, got 99"),
        (["--set", "model.text.init=a zebra"], "it has never seen 'zebra' in the text 'a zebra'. Fix: use another"),
        (["--output", "space.yaml"], "--output: exists already, and a study never overwrites, got 'space.yaml'"),
        (["--output", "space.yaml/study"], "(it is a file), got 'space.yaml/study'. Fix: free some space, or name a"),
    ],
)
def test_flags(refused: Refused, arguments: list[str], message: str) -> None:
    space = [] if arguments[0] in (".", "missing.yaml") else ["space.yaml"]
    refused(message, *space, *arguments, "--dry-run")


def test_class_names_that_the_embedded_tower_cannot_read(
    refused: Refused, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in ("zero", "zebra"):
        for number in range(4):
            picture(tmp_path / "pictures" / name / f"{number}.jpg")
    flags = ("--dataset", "pictures", "--store", tmp_path_factory.mktemp("store"), "--quiet", "--dry-run")
    refused("it has never seen 'zebra' in the text 'zebra.'. Fix: use another", "space.yaml", *flags)


@pytest.fixture
def small_vit(monkeypatch: pytest.MonkeyPatch) -> str:
    """A ViT architecture that is built in a moment."""
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-small-test", config)
    return "ViT-small-test"


class _Payload:
    def __reduce__(self) -> Any:
        return Path("ran").touch, ()


def _truncated(path: Path, write: Callable[[Path], Any]) -> None:
    write(path)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("weights.pt", lambda p: torch.save({"visual.proj": torch.zeros(3)}, p), "does not fit ViT-small-test: "),
        ("weights.safetensors", lambda p: save_file({"a": torch.zeros(3)}, p), "does not fit ViT-small-test: "),
        (
            "cut.pt",
            lambda p: _truncated(p, lambda q: torch.save({"a": torch.zeros(300)}, q)),
            "is not a whole checkpoint",
        ),
        (
            "cut.safetensors",
            lambda p: _truncated(p, lambda q: save_file({"a": torch.zeros(300)}, q)),
            "is not a whole checkpoint",
        ),
        ("empty.pt", lambda p: p.write_bytes(b""), "is not a whole checkpoint (it ends too early)"),
        ("payload.pt", lambda p: torch.save(_Payload(), p), "is damaged, or a pickle that holds more than tensors"),
        ("plain.pkl", lambda p: p.write_bytes(pickle.dumps(_Payload())), "could run code and is never loaded"),
        ("text.pt", lambda p: p.write_text("no checkpoint"), "is damaged, or a pickle that holds more than tensors"),
    ],
)
def test_checkpoints(
    refused: Refused, small_vit: str, tmp_path: Path, name: str, write: Callable[[Path], Any], message: str
) -> None:
    write(tmp_path / name)
    refused(message, "space.yaml", "--backbone", small_vit, "--pretrained", name, "--dry-run")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concurrency", "3"], "--concurrency: at most 2 trials of 1 CPU fit at a time, got 3. Fix: leave it out"),
        (["--gpus-per-trial", "1"], "--gpus-per-trial: the cluster has none, got 1.0. Fix: leave it out, or give 0"),
        (["--gpus-per-trial", "-1"], "--gpus-per-trial: must be at least 0, got -1.0"),
        (["--output", "/proc/study"], "--output: cannot be created (No such file or directory), got '/proc/study'"),
        (
            ["--output", "new/study", "--tracking-uri", "nonsense://x"],
            "--tracking-uri: the MLflow store cannot be used (",
        ),
    ],
)
def test_what_only_a_connected_ray_shows(
    connected_ray: None, refused: Refused, arguments: list[str], message: str
) -> None:
    refused(message, "space.yaml", *arguments)


def test_a_full_disk_before_the_first_trial(
    connected_ray: None, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fake in one place: a file system of its own would need the rights to mount one.
    honest = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if "study.yaml" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return honest(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    refused("study.yaml: cannot be written (No space left on device). Fix: free", "space.yaml", "--output", "out")


@pytest.mark.parametrize(
    ("flag", "address", "message"),
    [
        (
            "--ray-address",
            "127.0.0.1:{silent}",
            "nothing answers there (no answer within 0.3 s), got '127",
        ),
        (
            "--ray-address",
            "127.0.0.1:9",
            "nothing answers there (Connection refused), got '127.0.0.1:9'",
        ),
        (
            "--tracking-uri",
            "http://me:secret@127.0.0.1:{silent}",
            "--tracking-uri: the MLflow store cannot be used (nothing answers there (no answer within 0.3 s)), got "
            "'http://me:***@127.0.0.1:",
        ),
        (
            "--tracking-uri",
            "http://127.0.0.1:9",
            "(nothing answers there (Connection refused)), got 'http://127.0.0.1:9'",
        ),
        (
            "--tracking-uri",
            "postgresql://127.0.0.1:9/x",
            "(nothing answers there (Connection refused)), got 'postgres",
        ),
    ],
)
def test_clusters_and_servers_that_do_not_answer(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, flag: str, address: str, message: str
) -> None:
    monkeypatch.setattr(reachable, "SECONDS", 0.3)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may have started one
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with socket.create_server(("", 0)) as silent:  # takes a connection and never says a word
        refused(message, "space.yaml", flag, address.format(silent=silent.getsockname()[1]))


def test_a_cluster_that_is_not_there_leaves_no_traceback_from_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    command = [sys.executable, str(ROOT / "tune.py"), "space.yaml", "--ray-address", "127.0.0.1:9"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --ray-address: ")
    assert "nothing answers there (Connection refused), got '127.0.0.1:9'. Fix: " in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]
