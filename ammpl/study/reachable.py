"""Whether anybody answers at an address, found within seconds: Ray's and MLflow's own clients try for minutes."""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.error
import urllib.request
from urllib.parse import urlsplit

SECONDS = 10.0
"""How long a cluster's head or a tracking server may take to take a connection, and to say its first word."""

# A head speaks gRPC, so HTTP/2: both sides begin with a SETTINGS frame (RFC 9113, sections 3.4 and 6.5).
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME_HEADER, _SETTINGS = 9, 4  # bytes, the last four the stream's number; the type, in the fourth byte

_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def head_problem(host: str, port: int, encrypted: bool = False) -> str | None:
    """Return why no head of a Ray cluster can be there, None if one may be.

    Args:
        encrypted: the head speaks TLS, and is only asked for a connection.
    """
    try:
        with socket.create_connection((host, port), timeout=SECONDS) as connection:
            if encrypted:
                return None
            connection.sendall(_GREETING)
            answer = connection.recv(_FRAME_HEADER, socket.MSG_WAITALL)
    except OSError as error:
        return f"nothing answers there ({_reason(error)})"
    if len(answer) < _FRAME_HEADER or answer[3] != _SETTINGS:
        return "what answers there is no head of a Ray cluster"
    return None


def store_problem(uri: str) -> str | None:
    """Return why the server behind a tracking URI cannot be used, None if it may, or if there is no server.

    Any answer will do, a refusal too: what it means is MLflow's to say.
    """
    try:
        parts = urlsplit(uri)
        scheme, host, port = parts.scheme.partition("+")[0], parts.hostname, parts.port
    except ValueError:  # MLflow will say what is wrong with it
        return None
    try:
        if scheme in ("http", "https"):
            bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/") + "/health")
            urllib.request.urlopen(bare.geturl(), timeout=SECONDS).close()
        elif scheme in _DATABASE_PORTS and host:
            socket.create_connection((host, port or _DATABASE_PORTS[scheme]), timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except http.client.HTTPException:
        return "what answers there speaks no HTTP"
    except ValueError:
        return None
    except OSError as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        return None if isinstance(cause, ssl.SSLError) else f"nothing answers there ({_reason(cause)})"
    return None


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError) and not error.strerror:
        return f"no answer within {SECONDS:g} s"
    return str(getattr(error, "strerror", None) or error)
