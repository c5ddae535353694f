"""URLs of GCS, Azure and memory become buckets; what cannot be meant is refused by its name, and no secret is shown."""

from __future__ import annotations

from typing import Any

import pytest

from rebalance_tasks.core.errors import ConfigurationError, NodeMissing
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.gcs_azure.bucket import ObstoreBucket
from rebalance_tasks.drivers.object_stores.driver import ObjectStoreDriver
from rebalance_tasks.drivers.registry import open_driver, validate_roots

KEY = "c2VjcmV0LXZhbHVl"


def node(url: str, node_id: str = "n1", **options: Any) -> NodeDescriptor:
    return NodeDescriptor(node_id=node_id, url=url, storage_options=options)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("az://container/a", {"account_name": "acme", "account_key": KEY}),
        ("gs://bucket", {"skip_signature": True}),
        ("memory://here", {}),
    ],
)
def test_a_driver_is_made_without_a_connection(url: str, options: dict[str, Any]) -> None:
    driver = open_driver(node(url, **options))
    assert isinstance(driver, ObjectStoreDriver)
    assert isinstance(driver.bucket, ObstoreBucket)
    assert not driver.keeps_versions
    assert KEY not in repr(vars(driver.bucket))


@pytest.mark.parametrize(
    ("url", "options", "named"),
    [
        ("az://container", {"acount_key": KEY, "account_name": "acme"}, "account_name, acount_key"),
        ("gs://bucket", {"service_account_key": KEY}, "service_account_key"),
        ("memory://here", {"password": KEY}, "password"),
        ("az://", {}, "names no place"),
        ("gs://bucket/a/../b", {}, "names no place"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_by_name_and_their_values_are_not_shown(
    url: str, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named) as refused:
        open_driver(node(url, **options))
    assert KEY not in str(refused.value)
    assert refused.value.__cause__ is None


def test_two_nodes_in_one_container_are_refused_and_in_two_accounts_are_fine() -> None:
    validate_roots([node("az://c/a", "n1"), node("az://c/ab", "n2"), node("gs://c/a", "n3")])
    validate_roots([node("az://c", "n1", account_name="x"), node("az://c", "n2", account_name="y")])
    with pytest.raises(ConfigurationError, match="side by side"):
        validate_roots([node("az://c/a", "n1"), node("az://c", "n2")])


def test_a_store_that_is_away_makes_the_node_missing_and_shows_no_key() -> None:
    options: dict[str, Any] = {
        "account_name": "acme",
        "account_key": KEY,
        "endpoint": "http://127.0.0.1:1/acme",
        "allow_http": True,
    }
    driver = open_driver(node("az://container", **options))
    assert isinstance(driver, ObjectStoreDriver)
    assert isinstance(driver.bucket, ObstoreBucket)
    with pytest.raises(NodeMissing) as said:
        driver.check_identity()
    assert KEY not in str(said.value)
    assert "Debug source" not in str(said.value)
