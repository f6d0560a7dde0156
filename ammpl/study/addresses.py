"""Addresses of stores and chat services; what may be shown of others is :mod:`ammpl.redaction`'s."""

from __future__ import annotations

import urllib.parse


def without_path(url: str) -> str:
    """Return what of an address is no secret: those of chat services are keys."""
    host = urllib.parse.urlsplit(url).netloc.rpartition("@")[2] if "://" in url else ""
    return f"{url.partition('://')[0]}://{host}/…" if host else url


def is_remote(place: object) -> bool:
    """Whether a place is an address of a store, ``s3://bucket/studies/mine``, rather than a folder."""
    return isinstance(place, str) and "://" in place
