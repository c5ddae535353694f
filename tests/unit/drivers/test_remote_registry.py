"""URLs of remote nodes become drivers, and what cannot be meant is refused with the way out; nothing is connected."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.object_stores.driver import ObjectStoreDriver
from rebalance_tasks.drivers.registry import known_schemes, open_driver, validate_roots
from rebalance_tasks.drivers.s3.options import open_s3_bucket
from rebalance_tasks.drivers.sftp.driver import SftpDriver

if TYPE_CHECKING:
    from pathlib import Path

KEYS = {"access_key_id": "a", "secret_access_key": "b", "region": "eu-west-1"}


def node(url: str, node_id: str = "n1", **options: Any) -> NodeDescriptor:
    return NodeDescriptor(node_id=node_id, url=url, storage_options=options)


def test_the_known_schemes_are_those_that_the_documentation_lists() -> None:
    assert known_schemes() == ("az", "file", "gs", "memory", "s3", "sftp")


def test_a_driver_is_made_without_a_connection() -> None:
    assert isinstance(open_driver(node("s3://bucket/a", **KEYS)), ObjectStoreDriver)
    assert isinstance(open_driver(node("sftp://user@nowhere.invalid:2222/srv/x", password="p")), SftpDriver)  # noqa: S106


@pytest.mark.parametrize(
    ("url", "options", "way_out"),
    [
        ("sftp://", {}, "write sftp://user@host:22/absolute/path"),
        ("sftp://host", {}, "write sftp://user@host:22/absolute/path"),
        ("sftp://host:port/x", {}, "write sftp://user@host:22/absolute/path"),
        ("sftp://host/a/../b", {}, "write sftp://user@host:22/absolute/path"),
        ("sftp://host/a?b", {}, "%3F"),
        ("sftp://host/a", {"pass": "x"}, r"pass: Extra inputs.*known: username, password"),
    ],
)
def test_an_sftp_url_that_cannot_be_meant_is_refused(url: str, options: dict[str, Any], way_out: str) -> None:
    with pytest.raises(ConfigurationError, match=way_out):
        open_driver(node(url, **options))


def test_two_sftp_nodes_in_one_folder_are_refused_and_side_by_side_are_fine() -> None:
    validate_roots([node("sftp://host/a", "n1"), node("sftp://host/ab", "n2"), node("sftp://other/a", "n3")])
    validate_roots([node("sftp://host/a", "n1"), node("sftp://host:2222/a", "n2")])
    for url in ("sftp://host/a/", "sftp://host/a/b", "sftp://user@host:22/a"):
        with pytest.raises(ConfigurationError, match="side by side"):
            validate_roots([node("sftp://host/a", "n1"), node(url, "n2")])


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No credentials anywhere, and no question to the network."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def test_credentials_and_region_come_from_the_environment_where_they_are_not_stated(
    bare_environment: pytest.MonkeyPatch,
) -> None:
    for name, value in {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "s", "SESSION_TOKEN": "t"}.items():
        bare_environment.setenv(f"AWS_{name}", value)
    bare_environment.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    bucket, prefix = open_s3_bucket(node("s3://bucket/a/b"))
    assert (bucket.endpoint.url, prefix) == ("https://s3.eu-north-1.amazonaws.com", "a/b")
    found = bucket.endpoint._credentials()
    assert (found.access_key, found.secret_key, found.token) == ("id", "s", "t")


def test_credentials_come_from_a_profile_that_is_named(bare_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = "[archive]\naws_access_key_id = id\naws_secret_access_key = s\n"
    (tmp_path / "AWS_SHARED_CREDENTIALS_FILE").write_text(lines)
    bucket, _ = open_s3_bucket(node("s3://bucket", profile="archive", region="eu-west-1"))
    assert bucket.endpoint._credentials().access_key == "id"


def test_credentials_that_are_nowhere_are_missed_when_they_are_needed_with_the_way_out(
    bare_environment: pytest.MonkeyPatch,
) -> None:
    driver = open_driver(node("s3://bucket", region="eu-west-1"))
    with pytest.raises(ConfigurationError, match="no credentials for 's3://bucket'; give storage_options"):
        driver.check_identity()
