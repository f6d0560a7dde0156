"""The doctor says what is fine, what is not, and what to do."""

from __future__ import annotations

import os
import shutil
import socket
from importlib import metadata

import pytest
import ray

from ammpl.data.home import DataHome
from ammpl.study import readiness
from ammpl.study.engine import ray_cluster
from ammpl.study.readiness import Surroundings


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Surroundings(DataHome(tmp_path / "data", tmp_path / "store"))


def look(check, surroundings):
    return [(finding.mark, finding.name, finding.text, finding.fix) for finding in check(surroundings)]


def test_what_is_fine_needs_no_fix(surroundings):
    for name in ("python", "packages", "torch", "disk", "store", "backbone"):
        check = getattr(readiness, f"_{name}")
        for mark, _, text, fix in look(check, surroundings):
            assert (mark, fix) == ("ok", None), text


def test_a_package_of_another_version(surroundings, monkeypatch):
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.0" if name == "optuna" else version(name))
    [(mark, _, text, fix)] = look(readiness._packages, surroundings)
    assert mark == "FAIL"
    assert text.startswith("optuna is 1.0, needed is >=")
    assert fix == "pip install -e . in the project's folder"


def test_a_full_disk_and_one_that_may_not_be_written_to(surroundings, monkeypatch):
    usage = shutil.disk_usage(surroundings.home.store.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    assert {finding[0] for finding in look(readiness._disk, surroundings)} == {"note"}
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert {finding[0] for finding in look(readiness._disk, surroundings)} == {"FAIL"}


def test_a_store_that_does_not_answer(surroundings):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    away = Surroundings(surroundings.home, f"http://127.0.0.1:{port}")
    [(mark, _, text, fix)] = look(readiness._store, away)
    assert (mark, text) == ("FAIL", f"http://127.0.0.1:{port} does not answer: Connection refused")
    assert "--tracking-uri" in fix


def test_data_sets_and_their_splits(surroundings):
    [(mark, _, text, _)] = look(readiness._data, surroundings)
    assert mark == "note" and text.endswith("does not exist: embedded data sets only")
    (surroundings.home.root / "dtd").mkdir(parents=True)
    (surroundings.home.root / "eurosat").mkdir()
    (surroundings.home.root / "eurosat" / "split_zhou_EuroSAT.json").touch()
    found = {name: (mark, text) for mark, name, text, _ in look(readiness._data, surroundings)}
    assert found["data"] == ("ok", f"{surroundings.home.root}: eurosat, dtd")
    mark, text = found["data, dtd"]
    assert mark == "note" and text.startswith("has no split_zhou_DescribableTextures.json")
    assert "data, eurosat" not in found


def test_a_backbone_that_cannot_be_loaded(surroundings):
    wrong = Surroundings(surroundings.home, backbone=("ViT-B-16", "opena"))
    [(mark, _, text, fix)] = look(readiness._backbone, wrong)
    assert mark == "FAIL"
    assert text == "backbone.pretrained: neither a pretrained tag of ViT-B-16 nor a file"
    assert fix == "did you mean 'openai'?"


def test_a_cluster_that_is_not_there(surroundings, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests' Ray is left alone
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    away = Surroundings(surroundings.home, ray_address="nowhere")
    [(mark, _, text, fix)] = look(readiness._ray, away)
    assert (mark, text) == ("FAIL", "--ray-address: must be the HOST:PORT of a cluster's head, or 'auto'")
    assert "ray start" in fix


def test_a_check_that_breaks_is_a_finding(surroundings, monkeypatch):
    def broken(_):
        raise RuntimeError("no idea")
        yield

    monkeypatch.setattr(readiness, "_python", broken)
    first = next(readiness.examine(surroundings))
    assert (first.mark, first.text) == ("FAIL", "could not be looked at (RuntimeError: no idea)")


def test_a_folder_as_mlflows_store(surroundings, tmp_path, monkeypatch):
    for uri in ("./mlruns", f"file://{tmp_path}/mlruns"):
        there = Surroundings(surroundings.home, uri)
        monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
        [(mark, _, text, fix)] = look(readiness._store, there)
        assert mark == "FAIL" and text.startswith(f"{tmp_path}/mlruns is a folder") and "sqlite:///mlflow.db" in fix
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        assert look(readiness._store, there) == [("ok", "MLflow", f"{tmp_path}/mlruns will be made", None)]


def test_a_home_that_takes_no_token_of_rays(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ray_cluster._home_takes_a_token()
    monkeypatch.setenv("HOME", "/proc/nohome")
    assert not ray_cluster._home_takes_a_token()
