"""What the manifests on a target say of a move that was made more than once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.migration.manifests import ManifestEntry, freed_before, history

if TYPE_CHECKING:
    from pathlib import Path

MOVE = MoveId("j1.0")
KEY = "a/one"
#: versions of the source that were copied, and of the copies that were published, oldest first
COPIED = [Fingerprint(3, number, number, 1) for number in (10, 11, 12)]
PUBLISHED = [Fingerprint(3, number, number, 1) for number in (20, 21, 22)]


def node(tmp_path: Path, name: str) -> LocalDriver:
    (tmp_path / name).mkdir()
    driver = LocalDriver(name, str(tmp_path / name))
    driver.adopt()
    return driver


@pytest.fixture
def source(tmp_path: Path) -> LocalDriver:
    return node(tmp_path, "n1")


@pytest.fixture
def target(tmp_path: Path) -> LocalDriver:
    """A node on which one move published three times, and another one once."""
    driver = node(tmp_path, "n2")
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    for number, hour in ((2, 3), (0, 1), (1, 2)):
        entries = [entry(MOVE, number, noon + timedelta(hours=hour)), entry("j1.00", number, noon)]
        driver.write_manifest(f"{9 - number}.jsonl", [one.model_dump_json() for one in entries])
    return driver


def entry(move_id: str, number: int, at: datetime) -> ManifestEntry:
    return ManifestEntry(
        move_id=move_id,
        key=KEY,
        source="n1",
        target="n2",
        size=3,
        checksum="",
        published=PUBLISHED[number].to_json(),
        source_fingerprint=COPIED[number].to_json(),
        at=at,
    )


def test_the_history_of_a_move_is_its_own_and_begins_with_the_oldest(target: LocalDriver) -> None:
    assert [one.copied_fingerprint() for one in history(target, MOVE)] == COPIED
    assert history(target, "j1") == []


@pytest.mark.parametrize("role", ["source", "target"])
def test_what_was_freed_before_is_older_than_what_is_to_be_freed_now(
    source: LocalDriver, target: LocalDriver, role: str
) -> None:
    holder, versions = (source, COPIED) if role == "source" else (target, PUBLISHED)
    was_freed = freed_before(holder, target, KEY, MOVE, versions[1])
    # The newest is what the successor of a runner that was frozen has freed: it stays.
    assert [was_freed(held) for held in versions] == [True, False, False]
    unlisted = Fingerprint(3, 99, 99, 1)
    assert not was_freed(unlisted)
    assert all(freed_before(holder, target, KEY, MOVE, unlisted)(held) for held in versions)


def test_what_a_move_freed_came_before_what_stands_at_the_key_whatever_the_clocks_said(
    source: LocalDriver, target: LocalDriver, tmp_path: Path
) -> None:
    path = tmp_path / "n1" / KEY
    path.parent.mkdir()
    path.write_bytes(b"abc")
    standing = source.stat(KEY)
    assert standing is not None
    early = entry(MOVE, 0, datetime(2026, 1, 1, tzinfo=UTC))
    early = early.model_copy(update={"source_fingerprint": standing.to_json()})
    target.write_manifest("early.jsonl", [early.model_dump_json()])
    was_freed = freed_before(source, target, KEY, MOVE, standing)
    assert all(was_freed(held) for held in COPIED)
    path.unlink()
    assert not any(was_freed(held) for held in COPIED)
