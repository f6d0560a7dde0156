"""Which learnables a name means."""

from __future__ import annotations

import json

import pytest

from ammpl.errors import UserError
from ammpl.study.views.learned import FILE, learnables_of


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.yaml").write_text("version: 1\n")
    (tmp_path / "summary.json").write_text(json.dumps({"winner": "7"}))
    for key in ("search-0007", "confirm-0003-r2", "confirm-0007-r10", "confirm-0007-r2"):
        (tmp_path / "checkpoints" / key).mkdir(parents=True)
        (tmp_path / "checkpoints" / key / FILE).touch()
    return tmp_path


def test_a_study_means_its_winner_on_the_first_fresh_repeat(study):
    assert learnables_of(study) == study / "checkpoints" / "confirm-0007-r2" / FILE
    assert learnables_of(str(study)) == learnables_of(study)


def test_a_trials_folder_and_a_file_mean_themselves(study):
    folder = study / "checkpoints" / "confirm-0003-r2"
    assert learnables_of(folder) == learnables_of(folder / FILE) == folder / FILE


def test_what_cannot_be_meant_is_said(study, tmp_path):
    def refused(source, message):
        with pytest.raises(UserError, match=message):
            learnables_of(source, f"sqlite:///{tmp_path}/none.db")

    refused(tmp_path / "elsewhere", "is neither a file, a folder nor a run")
    refused(study / "checkpoints", f"has no {FILE}: the trial did not complete")
    for path in study.glob(f"checkpoints/confirm-0007-*/{FILE}"):
        path.unlink()
    refused(study, "has no learnables of the winner, trial 7")
    (study / "summary.json").write_text(json.dumps({"winner": None}))
    refused(study, "has no confirmed winner. Fix: name a trial's folder")
    (study / "summary.json").unlink()
    refused(study, "has not ended. Fix: python tune.py resume")
