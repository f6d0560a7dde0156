"""Real sockets that answer, refuse, keep silent, talk nonsense, or drop what comes."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ammpl.study import reachable
from ammpl.study.reachable import head_problem, store_problem
from tests.integration.mlflow_store import free_port

Listen = Callable[..., int]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachable, "SECONDS", 0.3)


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Return the port of a new server that says some bytes to whoever connects; with None it never says a word."""
    with ExitStack() as stack:

        def start(says: bytes | None) -> int:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def serve() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(says or b"")

            if says is not None:  # else the system takes the connection and nobody reads
                threading.Thread(target=serve, daemon=True).start()
            return int(server.getsockname()[1])

        yield start


@pytest.fixture
def dropping() -> Iterator[int]:
    """The port of a server whose queue is full, so that the system drops what comes without a word."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = int(server.getsockname()[1])
        stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        yield port


def test_a_head_greets_as_grpc_does(listen: Listen) -> None:
    settings = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]) + bytes(6)
    assert head_problem("127.0.0.1", listen(settings)) is None


def test_what_is_no_head(listen: Listen, dropping: int) -> None:
    assert head_problem("127.0.0.1", free_port()) == "nothing answers there (Connection refused)"
    assert head_problem("127.0.0.1", listen(None)) == "nothing answers there (no answer within 0.3 s)"
    assert head_problem("127.0.0.1", dropping) == "nothing answers there (no answer within 0.3 s)"
    for says in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
        assert head_problem("127.0.0.1", listen(says)) == "what answers there is no head of a Ray cluster"


def test_an_encrypted_head_is_only_asked_for_a_connection(listen: Listen, dropping: int) -> None:
    assert head_problem("127.0.0.1", listen(None), encrypted=True) is None
    assert head_problem("127.0.0.1", dropping, encrypted=True) == "nothing answers there (no answer within 0.3 s)"


@pytest.mark.parametrize("scheme", ["http", "postgresql", "mysql+pymysql"])
def test_a_store_that_is_not_there(scheme: str, dropping: int) -> None:
    for who in ("", "me:secret@"):
        refused = store_problem(f"{scheme}://{who}127.0.0.1:{free_port()}/mlflow")
        assert refused == "nothing answers there (Connection refused)"
        assert (
            store_problem(f"{scheme}://{who}127.0.0.1:{dropping}/m")
            == "nothing answers there (no answer within 0.3 s)"
        )


def test_a_tracking_server_must_speak(listen: Listen) -> None:
    assert store_problem(f"http://127.0.0.1:{listen(None)}") == "nothing answers there (no answer within 0.3 s)"
    assert store_problem(f"http://127.0.0.1:{listen(b'220 mail ready')}") == "what answers there speaks no HTTP"
    assert store_problem(f"postgresql://127.0.0.1:{listen(None)}/mlflow") is None  # the client speaks first there


def test_any_answer_will_do(listen: Listen) -> None:
    for status in (b"200 OK", b"401 Unauthorized", b"404 Not Found", b"500 Internal Server Error"):
        answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"
        assert store_problem(f"http://me:secret@127.0.0.1:{listen(answer)}/mlflow/") is None
    assert store_problem(f"https://127.0.0.1:{listen(b'no certificate')}") is None  # MLflow has its own rules for them


def test_the_health_page_is_asked_for() -> None:
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert store_problem(f"http://127.0.0.1:{server.server_port}/prefix/") is None
    assert asked == ["/prefix/health"]


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///mlflow.db",
        "mlruns",
        "file:///tmp/x",
        "databricks",
        "postgresql:///local",
        "http://a:b",
        "nonsense://x",
    ],
)
def test_what_is_no_server_or_no_address_is_mlflows_to_judge(uri: str) -> None:
    assert store_problem(uri) is None
