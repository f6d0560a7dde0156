"""A private PostgreSQL server for tests: a cluster in a temporary folder, on a free port of the loopback."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.integration.mlflow_store import free_port


def programs() -> Path | None:
    """Return the folder of the server's programs, None where it is not installed. Debian keeps them off the PATH."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if initdb := shutil.which("initdb"):
        found.append(Path(initdb).resolve().parent)
    return next((folder for folder in found if (folder / "postgres").exists()), None)


class PostgreSQL:
    """A server that can crash and be started again.

    Args:
        folder: of its own, below which everything is.
        bin: of the programs.
    """

    def __init__(self, folder: Path, bin: Path):
        self._folder, self._bin, self._port = folder, bin, free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self._user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
        if self._user:
            os.chown(folder, pwd.getpwnam(self._user).pw_uid, -1)
        made = self._run("initdb", "--auth", "trust", "--username", "ammpl", "--no-sync", "--pgdata", self._data)
        assert made.wait() == 0, self._log()

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        settings = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", f"port={self._port}")
        self._server = self._run("postgres", "-D", self._data, *(part for text in settings for part in ("-c", text)))
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                self._connection("postgres").close()
                return
            assert self._server.poll() is None and time.monotonic() < deadline, self._log()
            time.sleep(0.05)

    def stop(self) -> None:
        """End it as a crash would: connections break, and it recovers when it starts again."""
        assert self._server is not None
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait()

    def database(self, name: str) -> str:
        """Make a database and return its URL."""
        with contextlib.closing(self._connection("postgres")) as connection:
            connection.execute(f"create database {name}")
        return f"postgresql://ammpl@127.0.0.1:{self._port}/{name}"

    def _connection(self, database: str) -> psycopg.Connection:
        return psycopg.connect(host="127.0.0.1", port=self._port, user="ammpl", dbname=database, autocommit=True)

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(self._bin / program), *arguments]
        with (self._folder / "log").open("a") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, user=self._user, cwd="/"
            )

    def _log(self) -> str:
        return (self._folder / "log").read_text()


@contextlib.contextmanager
def server(bin: Path) -> Iterator[PostgreSQL]:
    """Run a server for the length of the block."""
    # Not below pytest's own folder, which only its user may enter.
    with tempfile.TemporaryDirectory(prefix="ammpl-postgresql-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        running = PostgreSQL(Path(name), bin)
        running.start()
        try:
            yield running
        finally:
            running.stop()
