"""What is secret in an address is in no text that is shown or kept."""

from __future__ import annotations

import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ammpl.errors import UserError
from ammpl.redaction import is_redacted, redacted

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me:hunter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg://me:hunter2@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("postgresql://host/db?user=me&password=hunter2", "postgresql://host/db?user=me&password=***"),
        ("https://host/?token=hunter2&x=1", "https://host/?token=***&x=1"),
        ("https://host/?x=1;api_key=hunter2#top", "https://host/?x=1;api_key=***#top"),
        ("https://host/#access_token=hunter2", "https://host/#access_token=***"),
        ("https://hunter2@host/mlflow", "https://***@host/mlflow"),
        ("https://me:hunter2@host:8443/a@b", "https://me:***@host:8443/a@b"),
        ("postgresql+psycopg2://me:pa:hunter2@db/x", "postgresql+psycopg2://me:***@db/x"),
        ("postgresql://me:hun/ter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:hun@ter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:1/hunter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:hunter2?@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:hun ter2@host/db", "postgresql://me:***@host/db"),
        ("s3://bucket/a?X-Amz-Signature=hunter2&region=eu", "s3://bucket/a?X-Amz-Signature=***&region=eu"),
        ("abfs://c@account/x?sig=hunter2", "abfs://c@account/x?sig=***"),
        ("https://host/?pass%77ord=hunter2", "https://host/?pass%77ord=***"),
        ("connection failed: user=me password=hunter2 host=x", "connection failed: user=me password=*** host=x"),
        (
            "'postgresql://me:hunter2@a/db' is away, see https://hunter2@b",
            "'postgresql://me:***@a/db' is away, see https://***@b",
        ),
        ("--tracking-uri=https://me:hunter2@host", "--tracking-uri=https://me:***@host"),
    ],
)
def test_secrets_are_left_out(address, shown):
    assert redacted(address) == shown
    assert is_redacted(shown) and redacted(shown) == shown


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me@host/db",
        "sqlite:///mlflow.db",
        "sqlite:////a/b@c.db",
        "sqlite:////a:b/c@d.db",
        "s3://bucket/studies/a@b?endpoint_override=http://127.0.0.1:9000",
        "http://127.0.0.1:5000/a@b",
        "file:///home/me/studies",
        "ssh://git@host/x",
        "https://host/?page=2#top",
        "no address at all, an @ and a: b",
    ],
)
def test_what_is_no_secret_stays(address):
    assert redacted(address) == address and not is_redacted(address)


SIGNS = st.text(string.ascii_letters + string.digits + "/@:?&=%+ ~!", min_size=1, max_size=12)
HOSTS = st.sampled_from(["host", "10.0.0.1:5432", "a-b.example:8443"])


@given(SIGNS, HOSTS, st.sampled_from(["postgresql", "mysql+pymysql", "postgresql+psycopg"]))
def test_no_password_of_a_database_is_shown_however_it_is_written(around, host, scheme):
    for secret in (f"{around}{SECRET}", f"{SECRET}{around}", quote(f"{around}{SECRET}", safe="")):
        assert SECRET not in redacted(f"{scheme}://me:{secret}@{host}/db")


@given(
    st.sampled_from(
        ["password", "PASSWORD", "sslpassword", "token", "access_token", "api-key", "X-Amz-Signature", "sig"]
    ),
    st.text(string.ascii_letters + string.digits + "/@:?%+~!", max_size=12),
    st.sampled_from(["https", "postgresql", "s3"]),
    HOSTS,
)
def test_no_secret_of_a_query_is_shown(name, around, scheme, host):
    for secret in (f"{around}{SECRET}", f"{SECRET}{around}"):
        address = f"{scheme}://{host}/x?a=1&{name}={secret}&b=2"
        assert SECRET not in redacted(address)
        assert SECRET not in redacted(f"{address} is away")
        assert SECRET not in str(UserError("--tracking-uri", f"{address} is away", got=address, fix=f"see {address}"))


@given(st.text(max_size=60))
def test_once_is_as_good_as_twice(text):
    assert redacted(redacted(text)) == redacted(text)
