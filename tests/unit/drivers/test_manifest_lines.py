"""A manifest's line is written by hand: it must say what `ManifestEntry` reads, whatever the key holds."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.errors import InvalidKey
from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.ids import MoveId, NodeId
from rebalance_tasks.core.keys import validate_key
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.migration.copying import StagedCopy
from rebalance_tasks.migration.item import Item
from rebalance_tasks.migration.manifests import ManifestEntry, lines
from rebalance_tasks.store.records import MoveRecord


def valid(key: str) -> bool:
    try:
        validate_key(key)
    except InvalidKey:
        return False
    return True


whole = st.integers(0, 2**63 - 1)
fingerprints = st.builds(Fingerprint, whole, whole, whole, whole, st.text(max_size=20))


@given(
    key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80).filter(valid),
    fingerprint=fingerprints,
    source=fingerprints,
    parts=st.lists(st.integers(1, 2**40), max_size=3),
)
def test_a_line_says_what_an_entry_reads(
    key: str, fingerprint: Fingerprint, source: Fingerprint, parts: list[int]
) -> None:
    copy = StagedCopy(source)
    for length in parts:
        copy.add(length, f"{length:032x}")
    move = MoveRecord(7, MoveId("rebal-1.7"), key, copy.staged_bytes)
    at = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    item = Item(move, MoveState.PENDING, copy=copy, published=fingerprint)
    (text,) = lines([item], NodeId("n1"), NodeId("n-2"), at)
    assert "\n" not in text
    entry = ManifestEntry.model_validate_json(text)
    assert (entry.move_id, entry.key, entry.source, entry.target) == ("rebal-1.7", key, "n1", "n-2")
    assert (entry.size, entry.checksum, entry.at, entry.v) == (copy.staged_bytes, copy.checksum, at, 1)
    assert (entry.published_fingerprint(), entry.copied_fingerprint()) == (fingerprint, source)
    assert ManifestEntry.model_validate_json(entry.model_dump_json()) == entry
