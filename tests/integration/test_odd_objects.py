"""Objects that are unusual in themselves: their keys, modes, holes, links. They arrive unchanged or are left alone."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.support.checker import check, record
from tests.support.engine import Engine, move, moves_between
from tests.support.fleets import NodeSpec
from tests.support.hooks import (
    DAY_MS,
    SIZES,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    """Two nodes, five objects on the first."""
    return fleet_config({"n1": SIZES, "n2": {"resident": 10}}, options={"throttle_bytes_per_sec": "none"})


@pytest.fixture
def engine(fleet: Fleet) -> Engine:
    return Engine()


# -- odd objects ------------------------------------------------------------------------------------------------------
ODD_KEYS = {
    "newline": "line one\nline two",
    "trailing dot": "folder./file.",
    "unicode": "\u0416\u0443\u043a/\u732b/\U0001f680.bin",
    "combining": "e\u0301",
    "spaces": " leading and trailing ",
    "backslash and quote": "a\\b'c\"d",
    "glob": "[x]*?",
    "bar": "n2|7",
    "1,024 bytes": "/".join(["d" * 204] * 4 + ["k" * 204]),
}


@pytest.mark.parametrize("name", ODD_KEYS)
def test_a_key_of_any_kind_goes_through_a_job_unchanged(fleet_config: FleetFactory, name: str) -> None:
    key = ODD_KEYS[name]
    fleet = fleet_config({"n1": {key: 3000}, "n2": {}})
    written = record(fleet.roots)
    engine = Engine()
    engine.start([move(key, "n1", "n2", 3000)])
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (1, {})
    check(fleet.roots, written, job)
    assert engine.context.locations.lookup(key).forwarded == "n2"
    assert engine.cleanup(later_ms=DAY_MS).purged == 1


def test_mode_times_and_attributes_travel_with_a_read_only_file(fleet: Fleet, engine: Engine) -> None:
    path = fleet.roots["n1"] / "a/one"
    attributes = set_attributes(path, {"user.colour": b"green"})
    path.chmod(0o440)
    os.utime(path, ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    engine.start([move("a/one", "n1", "n2", 3000)])
    assert engine.finish().completed_moves == 1
    arrived = fleet.roots["n2"] / "a/one"
    status = arrived.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o440, 1_500_000_000_987_654_321)
    assert {name: os.getxattr(arrived, name) for name in attributes} == attributes


def set_attributes(path: Path, attributes: dict[str, bytes]) -> dict[str, bytes]:
    """Set extended attributes; none where the system or its file system keeps none."""
    try:
        for name, value in attributes.items():
            os.setxattr(path, name, value)
    except (AttributeError, OSError):
        return {}
    return attributes


def test_a_sparse_file_keeps_its_holes(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({"n1": {}, "n2": NodeSpec(capacity_bytes=10**8)}, options={"throttle_bytes_per_sec": "none"})
    engine = Engine()
    path = fleet.roots["n1"] / "sparse"
    with path.open("wb") as file:
        file.write(b"head" * 1024)
        file.seek(8 << 20)
        file.write(b"tail")
        file.truncate(9 << 20)
    written = record(fleet.roots)
    blocks = path.stat().st_blocks
    engine.start([move("sparse", "n1", "n2", 9 << 20)])
    job = engine.finish()
    check(fleet.roots, written, job)
    assert (fleet.roots["n2"] / "sparse").stat().st_blocks <= blocks + 16


def test_an_object_with_two_names_is_left_alone(fleet: Fleet, engine: Engine) -> None:
    os.link(fleet.roots["n1"] / "a/one", fleet.roots["n1"] / "a/second-name")
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {"unreadable": 1})
    assert "hard links" in engine.outcome(0)
    assert (fleet.roots["n1"] / "a/one").samefile(fleet.roots["n1"] / "a/second-name")
    check(fleet.roots, written, job)


def test_a_symbolic_link_in_the_place_of_an_object_is_left_alone(fleet: Fleet, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"outside")
    (fleet.roots["n1"] / "a/one").unlink()
    (fleet.roots["n1"] / "a/one").symlink_to(tmp_path / "secret")
    engine.start([move("a/one", "n1", "n2", 3000)])
    job = engine.finish()
    assert job.failures == {"unreadable": 1}
    assert "a/one" not in fleet.objects("n2")
    assert (tmp_path / "secret").read_bytes() == b"outside"
