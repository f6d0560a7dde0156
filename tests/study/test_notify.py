"""The end of a study, told to a real server."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest

from ammpl import cli
from ammpl.errors import UserError
from ammpl.study import study
from ammpl.study.notify import check_url, message, post
from ammpl.study.record.environment import describe_environment
from ammpl.study.result.summary import Summary
from tests.command_line import SPACE
from tests.listener import listening
from tests.test_cli import SUMMARY


@pytest.mark.parametrize(
    ("changes", "state", "text"),
    [
        ({}, "ended", "study small-1: ended"),
        ({"interrupted": True}, "interrupted", "study small-1: interrupted"),
        ({"interrupted": True, "on_request": True}, "stopped", "study small-1: stopped"),
        ({"stopped": "all trials fail"}, "failed", "study small-1: failed (all trials fail)"),
        ({"errors": ("disk: full",)}, "failed", "study small-1: failed (disk: full)"),
    ],
)
def test_what_is_told(changes: dict[str, Any], state: str, text: str) -> None:
    told = message(dataclasses.replace(SUMMARY, **changes))
    assert told == {
        "study": "small-1",
        "state": state,
        "text": text,
        "seconds": 3.0,
        "trials": {"search": {"COMPLETE": 1, "FAILED": 1}},
        "metrics": pytest.approx(SUMMARY.flat_metrics()),
    }


def test_what_goes_wrong_is_said() -> None:
    with listening() as there:
        assert post(there.url, {"a": 1}) is None
        assert there.messages == [{"a": 1}]
    assert "refused" in str(post(there.url, {}))
    with listening(status=500) as broken:
        assert post(broken.url, {}) == "it answered 500 Internal Server Error"
    with socket.socket() as silent:  # accepts, says something that is no HTTP
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(10)
        import threading

        def answer() -> None:
            connection, _ = silent.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"220 mail\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert post(f"http://127.0.0.1:{silent.getsockname()[1]}", {}) is not None
        thread.join()


@pytest.mark.parametrize("url", ["", "example.org/x", "ftp://example.org", "http://", "http://a:x/", "https://a b/"])
def test_an_address_is_checked_before_anything_runs(url: str) -> None:
    with pytest.raises(UserError, match="--notify: "):
        check_url(url)
    check_url("https://hooks.example.org:8443/services/T/B?x=1")


@pytest.mark.parametrize(("status", "changes", "code"), [(200, {}, 0), (503, {}, 0), (503, {"stopped": "fail"}, 1)])
def test_the_exit_code_is_the_studys(
    status: int,
    changes: dict[str, Any],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    monkeypatch.chdir(tmp_path)

    def ends(*told: Any) -> Summary:
        return dataclasses.replace(SUMMARY, **changes)

    monkeypatch.setattr(study, "run_study", ends)
    with listening(status) as there:
        assert cli.main(["space.yaml", "--no-report", "--notify", there.url]) == code
    [told] = there.messages
    assert told["state"] == ("failed" if changes else "ended")
    lines = [line for line in capsys.readouterr().out.splitlines() if "not told" in line]
    warning = f"warning: {there.url.replace('hooks/secret', '…')} was not told of the end "
    assert lines == ([] if status == 200 else [warning + "(it answered 503 Service Unavailable)"])
    assert cli.main(["space.yaml", "--notify", "nowhere"]) == 2
    assert "--notify: must be an http or https address, got 'nowhere'" in capsys.readouterr().err


def test_a_fault_of_the_program_is_told_and_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ammpl

    def breaks(*told: Any) -> Summary:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(study, "run_study", breaks)
    with listening() as there:
        with pytest.raises(ZeroDivisionError):
            ammpl.study.run("smoke", notify=there.url)
        failed = "a study failed (ZeroDivisionError: division by zero)"
        assert there.messages == [{"state": "failed", "text": failed}]
        with pytest.raises(UserError):
            ammpl.study.run("smoke", notify=there.url, trials=0)
        assert len(there.messages) == 1


def test_an_address_is_not_recorded() -> None:
    url = "https://hooks.example.org/services/secret"
    for words in (["--notify", url], [f"--notify={url}"]):
        command = " ".join(describe_environment({}, ["tune.py", *words])["command"])
        assert "hooks.example.org" in command and "secret" not in command
