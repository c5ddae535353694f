"""What a pair of nodes cannot carry is said, and refused where the fleet asks for it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance_tasks.control.carrying import require_carried, with_losses
from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.core.fidelity import Attribute, Fidelity, lost
from rebalance_tasks.core.models import NodeDescriptor, RebalanceMove, RebalancePlan
from rebalance_tasks.drivers import fidelity
from rebalance_tasks.drivers.fsspec.driver import FsspecDriver
from rebalance_tasks.drivers.registry import lost_between, open_driver
from rebalance_tasks.settings.model import Settings

KEYS = {"access_key_id": "a", "secret_access_key": "b", "region": "eu-west-1"}
NODES = {
    "disk": NodeDescriptor(node_id="disk", url="file:///srv/disk"),
    "disk2": NodeDescriptor(node_id="disk2", url="file:///srv/disk2"),
    "s3": NodeDescriptor(node_id="s3", url="s3://bucket", storage_options=KEYS),
    "s3b": NodeDescriptor(node_id="s3b", url="s3://other", storage_options=KEYS),
    "gs": NodeDescriptor(node_id="gs", url="gs://bucket"),
    "az": NodeDescriptor(node_id="az", url="az://container"),
    "sftp": NodeDescriptor(node_id="sftp", url="sftp://host/a"),
    "ftp": NodeDescriptor(node_id="ftp", url="ftp://host/a"),
}
some = st.frozensets(st.sampled_from(Attribute))


@settings(deadline=None)
@given(some, some, some, some)
def test_what_is_lost_is_what_the_source_has_and_the_target_does_not_get(
    has: frozenset[Attribute], keeps: frozenset[Attribute], hides: frozenset[Attribute], own: frozenset[Attribute]
) -> None:
    source, target = Fidelity(has=has, keeps=own, hides=hides), Fidelity(keeps=keeps)
    gone = lost(source, target)
    assert set(gone) == {one for one in has if one not in keeps or one in hides}
    assert list(gone) == sorted(gone, key=list(Attribute).index)


@settings(deadline=None)
@given(some, some, some)
def test_a_target_that_keeps_more_never_loses_more(
    has: frozenset[Attribute], keeps: frozenset[Attribute], more: frozenset[Attribute]
) -> None:
    assert set(lost(Fidelity(has=has), Fidelity(keeps=keeps | more))) <= set(
        lost(Fidelity(has=has), Fidelity(keeps=keeps))
    )


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("disk", "disk2", ()),
        ("disk", "s3", ("owner", "xattrs", "holes")),
        ("disk", "sftp", ("owner", "xattrs", "holes")),
        ("disk", "ftp", ("mtime", "mode", "owner", "xattrs", "holes")),
        ("disk", "gs", ("owner", "xattrs", "holes")),
        ("s3", "disk", ()),
        ("s3", "s3b", ("storage_class",)),
        ("s3", "sftp", ("headers", "user_metadata", "tags", "storage_class")),
        ("s3", "az", ("tags", "storage_class")),
        ("az", "s3", ("tags", "storage_class")),
        ("gs", "disk", ("tags", "storage_class")),
        ("sftp", "disk", ()),
        ("ftp", "disk", ()),
    ],
)
def test_a_pair_says_what_it_loses(source: str, target: str, expected: tuple[str, ...]) -> None:
    assert lost_between(NODES[source], NODES[target]) == expected


def test_what_goes_to_a_disk_and_back_loses_no_more_than_it_does_directly() -> None:
    for kind in (fidelity.S3, fidelity.SFTP, fidelity.OBSTORE, fidelity.FSSPEC, fidelity.LOCAL):
        assert set(lost(kind, fidelity.LOCAL)) <= set(lost(kind, kind))


def test_a_driver_that_keeps_no_times_does_not_claim_to() -> None:
    driver = open_driver(NODES["ftp"])
    assert isinstance(driver, FsspecDriver)
    assert driver.keeps_mtime == (Attribute.MTIME in fidelity.FSSPEC.keeps) is False


def plan(*pairs: tuple[str, str]) -> RebalancePlan:
    moves = [
        RebalanceMove(object_key=f"k{number}", source_node=source, target_node=target, size_bytes=1, reason="r")
        for number, (source, target) in enumerate(pairs)
    ]
    return RebalancePlan(plan_id="p", moves=tuple(moves))


def test_a_plan_says_for_each_of_its_pairs_what_is_lost_and_nothing_for_those_that_lose_nothing() -> None:
    made = with_losses(plan(("disk", "disk2"), ("disk", "ftp"), ("disk", "ftp"), ("s3", "az")), NODES.values())
    assert made.not_carried == {
        "disk > ftp": ("mtime", "mode", "owner", "xattrs", "holes"),
        "s3 > az": ("tags", "storage_class"),
    }
    assert RebalancePlan.model_validate_json(made.model_dump_json()) == made


def fleet_settings(must_carry: Any, **pools: str) -> Settings:
    nodes = tuple(NODES[name].model_copy(update={"pool": pool}) for name, pool in pools.items())
    return Settings(nodes=nodes, must_carry=must_carry)


def test_a_pool_that_would_lose_what_must_be_carried_is_refused_with_the_ways_out() -> None:
    with pytest.raises(ConfigurationError, match="give one of them another pool, or take mtime off must_carry") as said:
        require_carried(fleet_settings(["mtime"], disk="a", ftp="a"))
    for word in ("must_carry = ['mtime']", "'disk' to 'ftp'", "pool 'a'"):
        assert word in str(said.value)


def test_nodes_in_pools_apart_lose_nothing_and_what_is_not_asked_for_may_be_lost() -> None:
    require_carried(fleet_settings(["mtime"], disk="a", ftp="b"))
    require_carried(fleet_settings(["headers"], disk="a", ftp="a"))
    require_carried(fleet_settings([], **dict.fromkeys(NODES, "a")))


def test_a_refusal_holds_for_exactly_the_pools_in_which_some_pair_loses_something() -> None:
    for first, second in product(NODES, repeat=2):
        if first == second:
            continue
        losing = set(lost_between(NODES[first], NODES[second])) | set(lost_between(NODES[second], NODES[first]))
        for attribute in Attribute:
            asked = fleet_settings([attribute], **{first: "a", second: "a"})
            if attribute in losing:
                with pytest.raises(ConfigurationError, match=attribute):
                    require_carried(asked)
            else:
                require_carried(asked)
