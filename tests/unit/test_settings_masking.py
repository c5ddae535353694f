"""Secrets are masked wherever something is shown."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.masking import has_credentials, is_secret_name, masked, masked_text, masked_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://:s3cret@db:6379/0", "redis://:***@db:6379/0"),
        ("redis://user:s3cret@db/0", "redis://user:***@db/0"),
        ("rediss://s3cret@db/0", "rediss://***@db/0"),
        ("redis://:pa/s@s#x@db/0", "redis://:***@db/0"),
        ("amqp://guest:s3cret@mq//", "amqp://guest:***@mq//"),
        ("sftp://backup:s3cret@host/a@b", "sftp://backup:***@host/a@b"),
        ("sftp://backup:s3/cret@host/a", "sftp://backup:***@host/a"),
        ("https://s3cret@host/x", "https://***@host/x"),
        ("user:s3cret@host:6379", "user:***@host:6379"),
        ("s3cret@host", "***@host"),
        ("https://host/x?sig=s3cret&sv=1", "https://host/x?sig=***&sv=1"),
        ("redis://h/0?password=s3cret", "redis://h/0?password=***"),
        ("sentinel://:s3cret@a:1;sentinel://:s3cret@b:2", "sentinel://:***@b:2"),
    ],
)
def test_credentials_are_masked(url: str, expected: str) -> None:
    assert masked_url(url) == expected
    assert has_credentials(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://[::1]:6379/0",
        "unix:///run/redis.sock?db=1",
        "file:///srv/a@b",
        "sftp://backup@host/a@b",
        "abfs://container@account/x",
        "s3://bucket/prefix?region=eu-west-1",
        "http://host:80/x@y",
        "",
        "plain words",
    ],
)
def test_what_holds_no_credentials_is_left_as_it_is(url: str) -> None:
    assert masked_url(url) == url
    assert not has_credentials(url)


@given(st.text(min_size=8, max_size=20), st.sampled_from(["redis", "rediss", "amqp", "sftp", "https"]), st.booleans())
def test_no_password_survives_whatever_is_in_it(password: str, scheme: str, encoded: bool) -> None:
    secret = quote(password, safe="") if encoded else password
    if not encoded and scheme in {"sftp", "https"} and any(mark in password for mark in "/?#"):
        return  # cannot be told from a path; settings refuse such URLs or the port gives them away
    shown = masked_url(f"{scheme}://user:{secret}@host:1234/0")
    assert shown == f"{scheme}://user:***@host:1234/0"


@pytest.mark.parametrize(
    "name", ["password", "redis_passwd", "SECRET_KEY", "aws_session_token", "account_key", "sas-key", "storage_options"]
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["object_key", "key", "node_id", "url", "design", "keyfile_count"])
def test_ordinary_names_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


def test_urls_within_a_text_are_masked() -> None:
    text = "cannot reach redis://:s3cret@h/0, nor amqp://u:s3cret@h (twice)"
    assert masked_text(text) == "cannot reach redis://:***@h/0, nor amqp://u:***@h (twice)"


def test_plain_data_is_masked_at_any_depth_and_keeps_its_shape() -> None:
    data = {
        "url": "redis://:s3cret@h",
        "nodes": [{"storage_options": {"endpoint": "s3cret", "retries": 3, "deep": {"a": "s3cret"}}, "node_id": "n"}],
        "api_key": "s3cret",
        "token": 7,
        "object_key": "k",
        "none": None,
        "blob": b"bytes",
        "password": b"s3cret",
    }
    result = masked(data)
    assert "s3cret" not in str(result)
    assert result["nodes"][0]["node_id"] == "n"
    assert result["nodes"][0]["storage_options"] == {"endpoint": "***", "retries": "***", "deep": "***"}
    assert (result["token"], result["object_key"], result["none"], result["blob"]) == (7, "k", None, b"bytes")
