"""What is kept of a batch as one value comes back as it was, and what is no such value is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.ids import MoveId, NodeId
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.migration import manifests
from rebalance_tasks.migration.copying import StagedCopy
from rebalance_tasks.migration.item import Item
from rebalance_tasks.migration.manifests import plain_lines
from rebalance_tasks.store.batches import (
    BatchRecord,
    JournalRow,
    Versions,
    indices_of,
    pack_journal,
    pack_plain_versions,
    pack_rows,
    pack_versions,
    ranges_of,
    unpack_journal,
)
from rebalance_tasks.store.records import JournalEntry, MoveRecord, Part, pack_keys
from rebalance_tasks.store.versions import NewerVersion

INDICES = st.sets(st.integers(0, 300), max_size=60).map(sorted)
NUMBER = st.integers(0, 2**64)
FINGERPRINTS = st.builds(Fingerprint, NUMBER, st.integers(-(2**70), 2**70), NUMBER, NUMBER, st.text(max_size=9))
COPIES = st.tuples(FINGERPRINTS, FINGERPRINTS, st.text(max_size=9), st.integers(0, 1))
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)


@given(INDICES)
def test_indices_come_back_from_their_ranges(indices: list[int]) -> None:
    assert indices_of(ranges_of(indices)) == indices


@given(INDICES)
def test_ranges_are_as_few_as_can_be(indices: list[int]) -> None:
    gaps = sum(second - first > 1 for first, second in pairwise(indices))
    assert ranges_of(indices).count("-") == (gaps + 1 if indices else 0)


@given(st.dictionaries(st.integers(0, 50), st.none() | COPIES, min_size=1), st.integers(0, 50))
def test_a_batch_s_journal_says_of_each_move_what_an_entry_of_its_own_would(
    begun: dict[int, tuple[Fingerprint, Fingerprint, str, int] | None], counted: int
) -> None:
    """Moves that were counted since are no concern of a successor."""
    sizes = {index: 100 + index for index in begun if index != counted}
    expected = {}
    rows = []
    for index, copy in begun.items():
        entry = JournalEntry(open=True, booked=100 + index)
        if copy is not None:
            source, staged, digest, verified = copy
            rows.append(JournalRow(index, digest, verified, source, staged))
            parts = (Part(source.size_bytes, digest),)
            entry = JournalEntry(
                open=True, booked=100 + index, source=source, parts=parts, verified=verified, staged=staged
            )
        expected[index] = JournalEntry.model_validate_json(entry.model_dump_json())
    expected.pop(counted, None)
    assert unpack_journal(pack_journal(ranges_of(sorted(begun)), rows), sizes) == expected


PLAIN = st.builds(Fingerprint, NUMBER, st.integers(-(2**70), 2**70), NUMBER, NUMBER, st.just(""))
DIGESTS = st.text("0123456789abcdef", min_size=32, max_size=32)


def columns(versions: list[Fingerprint]) -> Versions:
    """Versions without entity tags, in columns."""
    return tuple([version[field] for version in versions] for field in range(4))  # type: ignore[return-value]


@given(st.lists(st.tuples(PLAIN, PLAIN, DIGESTS), max_size=9), st.integers(0, 9))
def test_columns_are_packed_as_objects_are_and_go_together_with_them(
    copies: list[tuple[Fingerprint, Fingerprint, str]], split: int
) -> None:
    rows = [JournalRow(index, digest, 0, source, staged) for index, (source, staged, digest) in enumerate(copies)]
    rest = rows[split:]
    sources = columns([row.source for row in rest])
    staged = columns([row.staged for row in rest])
    packed = pack_rows([row.move for row in rest], [row.digest for row in rest], sources, staged)
    sizes = dict.fromkeys(range(len(rows)), 1)
    ranges = ranges_of(range(len(rows)))
    assert unpack_journal(pack_journal(ranges, rows[:split], packed), sizes) == unpack_journal(
        pack_journal(ranges, rows), sizes
    )
    assert pack_plain_versions(sources) == pack_versions([row.source for row in rest])
    at = datetime(2026, 11, 28, tzinfo=UTC)
    moves = [MoveRecord(row.move, MoveId(f"j.{row.move}"), f"ä/{row.move}", row.source.size_bytes) for row in rest]
    items = [Item(move, MoveState.PENDING) for move in moves]
    for item, row in zip(items, rest, strict=True):
        item.copy = StagedCopy(row.source, [Part(row.source.size_bytes, row.digest)])
        item.published = row.staged
    nodes = NodeId("a"), NodeId("b")
    lines = plain_lines(moves, [row.digest for row in rest], staged, sources, nodes=nodes, at=at)
    assert list(lines) == list(manifests.lines(items, *nodes, at))


@given(st.lists(KEYS, min_size=1, max_size=20), st.integers(0, 1000), st.data())
def test_a_record_names_the_moves_of_its_ranges(keys: list[str], first: int, data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(keys) - 1), min_size=1)))
    versions = data.draw(st.lists(FINGERPRINTS, min_size=len(places), max_size=len(places)))
    record = BatchRecord.read("j.1/g0/3", kept([(key, 7) for key in keys], first, places, versions))
    assert record.node == "disk1"
    assert record.moves == [(f"j.1.{first + place}", keys[place]) for place in places]
    assert record.versions == versions


def kept(keys: list[tuple[str, int]], first: int, places: list[int], versions: list[Fingerprint]) -> bytes:
    """What ``lua/with/batches.lua`` keeps."""
    ranges = ranges_of([first + place for place in places])
    rows = pack_versions(versions) if versions else b""
    return f"1 disk1 {ranges}\n".encode() + rows + b"\n" + pack_keys(first, keys)


@pytest.mark.parametrize("places", [[1, 2], [-1], [5]])
def test_a_record_that_speaks_of_moves_outside_its_stretch_is_refused(places: list[int]) -> None:
    with pytest.raises(
        ValueError, match=r"the record of batch 'j1/g0/0' speaks of moves .*, its stretch has 2 from 10"
    ):
        BatchRecord.read("j1/g0/0", kept([("a", 1), ("b", 1)], 10, places, []))


def test_a_value_of_a_newer_release_is_refused() -> None:
    with pytest.raises(NewerVersion, match="a batch record of version 2"):
        BatchRecord.read("j1/g0/0", b"2 whatever comes then")
    with pytest.raises(NewerVersion, match="a batch record of version 2"):
        unpack_journal('[2,"0-1",[]]', {})


@pytest.mark.parametrize("raw", ["", "{}", '[1,"0-1"]', '[1,"0-1",[[0,"d",1,[1,1,1,1,""]]]]', '[1,"0-1",[[-1]]]'])
def test_a_value_that_is_no_journal_is_refused(raw: str) -> None:
    with pytest.raises(ValidationError):
        unpack_journal(raw, {0: 1})
