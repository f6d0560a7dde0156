"""Trials that die and go on: the numbers and files of one that did not die, bit for bit, and no step trained twice."""

from __future__ import annotations

import errno
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ammpl
from ammpl.config import resolve
from ammpl.data.dataset import Originals
from ammpl.training import device, run
from ammpl.training.run import TrainingDivergedError, train
from ammpl.training.running_checkpoint import DRAFT, FILE
from ammpl.training.step import TrainingStep
from tests.training.published import VALUES

# 20 images in batches of 8 are two steps an epoch: an evaluation at step 3 is in the middle of one.
SMALL = {
    "data.shots": 2,
    "data.validation_shots": 2,
    "training.steps": 7,
    "training.batch_size": 8,
    "training.evaluate_every": 3,
}
TASK = SMALL | {"model.mask.scope": "task"}
EPOCHS = {name: value for name, value in SMALL.items() if name != "training.steps"} | {"training.epochs": 4}
# 14 pictures, cropped at random, in batches of 4: three steps an epoch.
PHOTOS = VALUES | {"training.steps": 8, "training.evaluate_every": 2}
LAST = {"config.json", "data.json", "machine.json", "learnables.safetensors", "masks.png"}


class Death(BaseException):
    """What nothing catches, as a kill."""


def die_after(count, config, folder, home=None):
    """Let a trial die where it waits after an evaluation; return what it told."""
    trial = train(config, folder, home)
    told = list(itertools.islice(trial, count))
    with pytest.raises(Death):
        trial.throw(Death())
    return told


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def trained(monkeypatch):
    """The steps that are trained, as they happen."""
    steps: list[int] = []
    take = TrainingStep.__call__

    def counted(self, batch, number, factor):
        steps.append(number)
        return take(self, batch, number, factor)

    monkeypatch.setattr(TrainingStep, "__call__", counted)
    return steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A trial that did not die: its evaluations and its files."""
    folder = tmp_path_factory.mktemp("whole")
    return list(train(resolve("ammpl", TASK), folder)), contents(folder)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("ammpl", TASK),
        ("ammpl", TASK | {"training.optimizer": "sgd", "model.mask.estimator": "relaxed"}),
        ("ammpl", SMALL | {"model.padding.depth": 2}),  # a mask a class
        ("ammpl", SMALL | {"model.mask.kind": "random", "training.schedule": "constant"}),
        ("ammpl", TASK | {"model.padding.content": "noise", "model.mask.evaluation": "samples"}),
        ("ammpl", TASK | {"data.task": "pseudo_new"}),
        ("coop", EPOCHS),
        ("cocoop", EPOCHS | {"training.batch_size": 4}),
        ("vpt", EPOCHS),
        ("maple", EPOCHS),
        ("ammpl", PHOTOS),
        ("ammpl", PHOTOS | {"model.interaction.image_source": "pooled", "training.batch_size": 5}),
    ],
)
def test_a_trial_that_dies_at_every_evaluation_ends_as_one_that_did_not(
    method, values, home, small_vit, trained, tmp_path
):
    config = resolve(method, values)
    expected = list(train(config, tmp_path / "whole", home))
    assert len(expected) >= 3
    steps = list(trained)
    trained.clear()
    for count in range(1, len(expected) + 1):
        assert die_after(count, config, tmp_path / "again", home) == expected[:count]
        assert (tmp_path / "again" / FILE).exists()
    assert list(train(config, tmp_path / "again", home)) == expected
    assert trained == steps == list(range(expected[-1][0]))
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    assert contents(tmp_path / "whole").keys() | {"masks.png"} == LAST


def test_pictures_before_the_checkpoint_are_not_decoded_again(home, small_vit, monkeypatch, tmp_path):
    monkeypatch.setattr(device, "device", lambda: "cpu")  # on a GPU all pictures are decoded first, once a process
    config = resolve("ammpl", PHOTOS)
    die_after(3, config, tmp_path, home)
    decoded = []
    augmented = Originals.augmented
    monkeypatch.setattr(Originals, "augmented", lambda *args: decoded.append(args) or augmented(*args))
    list(train(config, tmp_path, home))
    assert len(decoded) == 2 * 4  # of eight steps, six are behind


PROCESS = """
import json, os, signal, sys
from pathlib import Path
from ammpl.config import resolve
from ammpl.training import device, run
from ammpl.training.step import TrainingStep

folder, values, ending = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
take = TrainingStep.__call__

def deadly(self, batch, number, factor):
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self, batch, number, factor)

TrainingStep.__call__ = deadly
trial = run.train(resolve("ammpl", values), folder)
for evaluation in trial:
    print(json.dumps(evaluation), flush=True)
    if ending == "exit":
        sys.exit()
"""


def test_processes_that_exit_or_are_killed_leave_what_the_next_goes_on_from(whole, trained, tmp_path):
    expected, files = whole

    def told(ending):
        command = [sys.executable, "-c", PROCESS, str(tmp_path), json.dumps(TASK), ending]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        return done.returncode, [tuple(json.loads(line)) for line in done.stdout.splitlines()]

    assert told("exit") == (0, expected[:1])
    assert told("kill -9 in the midst of step 5") == (-9, expected[:1])
    assert set(contents(tmp_path)) == {FILE}
    assert list(train(resolve("ammpl", TASK), tmp_path)) == expected
    assert trained == [3, 4, 5, 6]
    assert contents(tmp_path) == files


@pytest.mark.parametrize("moment", ["half written", "before it is in place"])
def test_dying_while_the_checkpoint_is_written_is_harmless(moment, whole, trained, monkeypatch, tmp_path):
    expected, files = whole
    config = resolve("ammpl", TASK)
    die_after(1, config, tmp_path)
    write = Path.write_bytes

    def write_half(path, content):
        write(path, content[: len(content) // 2] if moment == "half written" else content)
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_half)
        with pytest.raises(Death):
            list(train(config, tmp_path))
    assert set(contents(tmp_path)) == {FILE, DRAFT}
    trained.clear()
    assert list(train(config, tmp_path)) == expected
    assert trained == [3, 4, 5, 6]
    assert contents(tmp_path) == files


def test_dying_over_its_last_files_costs_no_step(whole, trained, monkeypatch, tmp_path):
    expected, files = whole
    config = resolve("ammpl", TASK)

    def die(*args):
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(run, "draw_masks", die)
        with pytest.raises(Death):
            list(train(config, tmp_path))
    trained.clear()
    assert list(train(config, tmp_path)) == expected
    assert trained == []
    assert contents(tmp_path) == files


def test_a_full_disk_costs_the_checkpoint_and_not_the_trial(whole, trained, monkeypatch, caplog, tmp_path):
    expected, _ = whole
    config = resolve("ammpl", TASK)
    die_after(1, config, tmp_path)

    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert die_after(2, config, tmp_path) == expected[:2]
    assert f"{FILE} cannot be written (No space left on device)" in caplog.text
    assert set(contents(tmp_path)) == {FILE}
    trained.clear()
    assert list(train(config, tmp_path)) == expected  # from the checkpoint before, to the same numbers
    assert trained == [3, 4, 5, 6]


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"", "is damaged"),
        (lambda content: content[:-1], "is damaged"),
        (lambda content: content[: len(content) // 2], "is damaged"),
        (lambda content: b"\0" * len(content), "is damaged"),
        (lambda content: flipped(content, len(content) - 5), "its checksum differs"),  # a tensor
        (lambda content: flipped(content, content.index(b"train/loss") + 15), "its checksum differs"),  # a number
        (lambda content: flipped(content, 1), "is damaged"),  # the length of the header
    ],
)
def test_a_damaged_checkpoint_is_not_gone_on_from(damage, words, whole, trained, caplog, tmp_path):
    expected, files = whole
    config = resolve("ammpl", TASK)
    die_after(2, config, tmp_path)
    content = (tmp_path / FILE).read_bytes()
    assert damage(content) != content
    (tmp_path / FILE).write_bytes(damage(content))
    trained.clear()
    assert list(train(config, tmp_path)) == expected
    assert trained == list(range(7))
    assert contents(tmp_path) == files
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path / FILE} is damaged") and words in line
    assert line.endswith(": the trial starts anew")


def test_a_checkpoint_of_another_configuration_is_not_gone_on_from(whole, trained, caplog, tmp_path):
    expected, files = whole
    die_after(2, resolve("ammpl", TASK | {"seeds.noise": 2}), tmp_path)
    trained.clear()
    assert list(train(resolve("ammpl", TASK), tmp_path)) == expected
    assert trained == list(range(7)) and contents(tmp_path) == files
    assert caplog.messages == [f"{tmp_path / FILE} is of another config: the trial starts anew"]


@pytest.mark.parametrize(("where", "name"), [(ammpl, "ammpl-study"), (torch, "torch")])
def test_a_checkpoint_of_another_version_is_not_gone_on_from(
    where, name, whole, trained, caplog, monkeypatch, tmp_path
):
    config = resolve("ammpl", TASK)
    with monkeypatch.context() as patch:
        patch.setattr(where, "__version__", "0.0")
        die_after(2, config, tmp_path)
    trained.clear()
    assert list(train(config, tmp_path)) == whole[0]
    assert trained == list(range(7))
    assert caplog.messages == [f"{tmp_path / FILE} is of another {name}: the trial starts anew"]


def test_a_pruned_trial_leaves_nothing_to_go_on_from(whole, tmp_path):
    config = resolve("ammpl", TASK)
    trial = train(config, tmp_path)
    next(trial)
    (tmp_path / DRAFT).touch()
    trial.close()
    assert contents(tmp_path) == {}
    die_after(2, config, tmp_path)
    again = train(config, tmp_path)
    assert next(again) == whole[0][0]
    again.close()  # while it still tells what was
    assert contents(tmp_path) == {}


def test_a_diverged_trial_leaves_nothing_to_go_on_from_but_other_failures_do(whole, trained, monkeypatch, tmp_path):
    expected, files = whole
    config = resolve("ammpl", TASK)
    take = TrainingStep.__call__

    def failing(self, batch, number, factor):
        if number == 4:
            raise MemoryError
        return take(self, batch, number, factor)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", failing)
        with pytest.raises(MemoryError):
            list(train(config, tmp_path))
    trained.clear()
    assert list(train(config, tmp_path)) == expected
    assert trained == [3, 4, 5, 6] and contents(tmp_path) == files

    def diverging(self, batch, number, factor):
        result = take(self, batch, number, factor)
        loss = result.back.loss * (float("nan") if number == 4 else 1)
        return replace(result, back=replace(result.back, loss=loss))

    monkeypatch.setattr(TrainingStep, "__call__", diverging)
    with pytest.raises(TrainingDivergedError, match="step 4"):
        list(train(config, tmp_path / "diverged"))
    assert contents(tmp_path / "diverged") == {}


def test_a_trial_without_steps_has_no_checkpoint(tmp_path):
    config = resolve("zero_shot", {"data.validation_shots": 2})
    ((step, _),) = die_after(1, config, tmp_path / "trial")
    assert step == 0 and not (tmp_path / "trial").exists()
