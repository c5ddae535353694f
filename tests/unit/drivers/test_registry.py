"""URLs become drivers; two nodes never share a place."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.core.options import MIB
from rebalance_tasks.core.pacing.inflight import LARGE_AT_ONCE
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.local.linux import native
from rebalance_tasks.drivers.registry import at_once, known_schemes, open_driver, validate_roots

if TYPE_CHECKING:
    from pathlib import Path


def node(node_id: str, url: object) -> NodeDescriptor:
    return NodeDescriptor(node_id=node_id, url=str(url))


@pytest.mark.parametrize("form", ["file://{}", "file://localhost{}", "{}", "file://{}/", "file://{}/../with%20space"])
def test_every_way_to_write_a_local_url_opens_the_same_root(tmp_path: Path, form: str) -> None:
    root = tmp_path / "with space"
    root.mkdir()
    driver = open_driver(node("n", form.format(str(root).replace(" ", "%20" if form.startswith("file") else " "))))
    assert isinstance(driver, LocalDriver)
    assert driver.root == str(root)


def test_an_unknown_scheme_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'n1'.*gopher://h/x.*unknown scheme 'gopher'; known:.*file://"):
        open_driver(node("n1", "gopher://h/x"))
    assert "file" in known_schemes()


@pytest.mark.parametrize(
    ("url", "way_out"),
    [
        ("file://host/x", "three slashes"),
        ("file:relative", "absolute"),
        ("relative/path", "unknown scheme"),
        ("", "unknown scheme"),
        ("file:///a?b", "%3F"),
        ("file:///a#b", "%23"),
        ("file:///a%00b", "absolute"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_the_way_out(url: str, way_out: str) -> None:
    with pytest.raises(ConfigurationError, match=way_out):
        open_driver(node("n1", url))
    with pytest.raises(ConfigurationError, match=way_out):
        validate_roots([node("n1", url)])


def test_roots_side_by_side_are_fine_even_where_one_name_begins_with_the_other(tmp_path: Path) -> None:
    for name in ("disk", "disk1", "disk-2"):
        (tmp_path / name).mkdir()
    validate_roots([node(name, tmp_path / name) for name in ("disk", "disk1", "disk-2")])


@pytest.mark.parametrize(
    "second", ["disk", "disk/", "disk/.", "disk/../disk", "link", "disk/sub", "link/sub/deep", "disk/missing"]
)
def test_the_same_and_nested_roots_are_refused_naming_both(tmp_path: Path, second: str) -> None:
    (tmp_path / "disk/sub/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    other = tmp_path / "zzz"
    nodes = [
        node("a", f"file://{tmp_path}/disk"),
        node("between", f"file://{other}"),
        node("b", f"file://{tmp_path}/{second}"),
    ]
    for order in (nodes, nodes[::-1]):
        with pytest.raises(ConfigurationError, match=r"(?s)'a'.*'b'|'b'.*'a'") as caught:
            validate_roots(order)
        assert "side by side" in str(caught.value)
        assert f"{tmp_path}/{second}" in str(caught.value)


def test_the_root_of_everything_nests_every_node(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nested"):
        validate_roots([node("a", "file:///"), node("b", tmp_path)])


# -- large copies -----------------------------------------------------------------------------------------------------
def with_direct(root: Path, name: str, direct: object = True) -> LocalDriver:
    (root / name).mkdir()
    url = (root / name).as_uri()
    driver = open_driver(NodeDescriptor(node_id=name, url=url, storage_options={"direct": direct, "client_key": "k"}))
    assert isinstance(driver, LocalDriver)
    # Whatever these files lie on: one whose word is that it can.
    object.__setattr__(driver.tree, "calls", replace(native(), direct=lambda _: True))
    driver.adopt()
    return driver


def test_as_many_go_at_once_as_are_large_and_no_more_than_keep_a_disk_busy(tmp_path: Path) -> None:
    source, target = (with_direct(tmp_path, name) for name in ("a", "b"))
    cached = with_direct(tmp_path, "c", False)
    small = [0, 1, MIB - 1]
    for large in range(2 * LARGE_AT_ONCE):
        sizes = [*small, *[MIB + large] * large]
        assert at_once(source, target, sizes) == max(1, min(LARGE_AT_ONCE, large))
        assert at_once(source, cached, sizes) == 1, "what goes through the page cache waits for nothing"
        assert at_once(cached, target, sizes) == at_once(source, target, sizes)


def test_a_node_that_was_adopted_since_is_asked_again_how_large_copies_go(tmp_path: Path) -> None:
    driver = LocalDriver("n", str(tmp_path), calls=replace(native(), direct=lambda _: True))
    before = driver.tree.direct, driver.probe().direct
    driver.adopt()
    assert (*before, driver.tree.direct, driver.probe().direct) == (False, None, True, True)


def test_direct_is_true_or_false(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'n': storage_options.direct is neither true nor false"):
        open_driver(NodeDescriptor(node_id="n", url=tmp_path.as_uri(), storage_options={"direct": "no"}))
