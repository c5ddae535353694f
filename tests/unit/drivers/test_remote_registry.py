"""URLs of remote nodes become drivers, and what cannot be meant is refused with the way out; nothing is connected."""

from __future__ import annotations

from typing import Any

import pytest

from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.object_store import ObjectStoreDriver
from rebalance_tasks.drivers.registry import known_schemes, open_driver, validate_roots
from rebalance_tasks.drivers.sftp import SftpDriver

KEYS = {"access_key_id": "a", "secret_access_key": "b", "region": "eu-west-1"}


def node(url: str, node_id: str = "n1", **options: Any) -> NodeDescriptor:
    return NodeDescriptor(node_id=node_id, url=url, storage_options=options)


def test_the_known_schemes_are_those_that_the_documentation_lists() -> None:
    assert known_schemes() == ("file", "s3", "sftp")


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
