"""``python tune.py`` as a person runs it: real training, real Ray, real MLflow, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import optuna
import pyarrow.parquet as pq
from mlflow.tracking import MlflowClient

import ammpl
from ammpl.data.home import DataHome
from ammpl.data.task import load_test
from ammpl.model.backbone import load_backbone
from ammpl.training.classifier import Classifier
from ammpl.training.run import image_transform

ROOT = Path(__file__).resolve().parents[2]

# Half of the trials fail (their loss overflows), and the pruner stops whatever is below the median.
SPACE = """\
version: 1
name: tiny
fixed:
  data.shots: 1
  data.validation_shots: 2
  model.mask.scope: task
  training.steps: 4
  training.batch_size: 2
  training.evaluate_every: 1
parameters:
  training.weight_decay: {type: categorical, choices: [0.0001, 1e+38]}
  model.padding.depth: {type: int, low: 1, high: 3}
pruner: {name: median, startup_trials: 1}
budget: {trials: 6}
confirm: {top: 1, repeats: 1, baselines: [zero_shot]}
"""


def sealed_accuracy(classifier: Classifier) -> float:
    """Return the accuracy on the sealed digits."""
    transform = image_transform(load_backbone(classifier.config.backbone).preprocessing)
    [(_, split, _)] = load_test(classifier.config.data, transform, DataHome()).values()
    predicted = classifier.predict(split.pixels())
    right = [name == split.class_names[label] for name, label in zip(predicted, split.labels, strict=True)]
    return sum(right) / len(right)


def test_a_study_from_the_command_line(tmp_path: Path, sqlite_uri: str) -> None:
    (tmp_path / "tiny.yaml").write_text(SPACE)
    command = [sys.executable, str(ROOT / "tune.py"), "tiny.yaml", "--output", "out", "--tracking-uri", sqlite_uri]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "zero_shot" in done.stdout
    assert "study folder: out\n" in done.stdout
    assert "MLflow: python tune.py ui out\n" in done.stdout

    folder = tmp_path / "out"
    trials = {row["key"]: row for row in pq.read_table(folder / "trials" / "trials.parquet").to_pylist()}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_openings"] == 1
    assert sorted(key for key in trials if key.startswith("test-")) == sorted(
        f"test-{name}-r2" for name in (f"{int(summary['winner']):04d}", "zero_shot")
    )
    learned = folder / "checkpoints" / f"confirm-{int(summary['winner']):04d}-r2"
    assert (learned / "learnables.safetensors").stat().st_size < 1_000_000
    recorded = trials[f"test-{int(summary['winner']):04d}-r2"]["metrics.test/accuracy"]
    assert sealed_accuracy(ammpl.load(folder)) == recorded

    stored = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/optuna.sqlite3").trials
    client = MlflowClient(sqlite_uri)
    parent = json.loads((folder / "mlflow.json").read_text())
    runs = client.search_runs([parent["experiment_id"]], f"tags.mlflow.parentRunId = '{parent['run_id']}'")
    tracked = {run.data.tags["trial"]: run for run in runs}
    assert sealed_accuracy(ammpl.load(tracked[learned.name].info.run_id, sqlite_uri)) == recorded
    assert tracked.keys() == trials.keys()
    statuses = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAILED": "FAILED"}
    for key, row in trials.items():
        assert tracked[key].data.tags["state"] == row["state"]
        assert tracked[key].info.status == statuses[row["state"]]
        if row["phase"] == "search":
            assert stored[row["number"]].user_attrs["state"] == row["state"]
    assert {"COMPLETE", "FAILED"} <= {row["state"] for row in trials.values()}
    assert client.get_run(parent["run_id"]).info.status == "FINISHED"
