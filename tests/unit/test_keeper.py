"""Candidates of a stream of rows: what is kept, what is counted, what is refused, and how it compares with keeping everything."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance_tasks.core.errors import InvalidInventory
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.keeping.candidates import chosen
from rebalance_tasks.core.keeping.cuts import Cuts
from rebalance_tasks.core.keeping.keeper import Keeper, Meetings
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.planner import plan_rebalance
from rebalance_tasks.core.verify import verify_plan

if TYPE_CHECKING:
    from collections.abc import Iterable

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OPTIONS = RebalancerOptions()
NODES = [NodeDescriptor(node_id=f"n{number}", capacity_bytes=10**6) for number in range(3)]
ROWS = st.lists(
    st.tuples(st.integers(0, 30).map("k{}".format), st.integers(0, 4).map("n{}".format), st.integers(0, 10**5)),
    max_size=60,
    unique_by=lambda row: row[:2],
)


def table(rows: Iterable[tuple[str, str, int]]) -> pa.Table:
    keys, nodes, sizes = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {"object_key": pa.array(keys, pa.string()), "size_bytes": pa.array(sizes, pa.int64())}
    return pa.table(columns | {"node_id": pa.array(nodes, pa.string())})


def streamed(rows: pa.Table, *, batch: int, most: int, buffer_rows: int) -> tuple[Inventory, dict[str, int]]:
    batches = [rows.slice(first, batch) for first in range(0, rows.num_rows, batch)]
    keeper = Keeper(NODES, most=most, options=OPTIONS, now=NOW, buffer_rows=buffer_rows)
    for part in batches:
        keeper.add(Inventory.from_arrow(part))
    kept, used = keeper.kept()
    meetings = Meetings(kept)
    for part in batches:
        meetings.look(part.select(["object_key", "node_id"]))
    return meetings.apart(), used


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, batch=st.integers(1, 20), most=st.integers(1, 40), buffer_rows=st.integers(1, 40))
def test_bytes_and_counts_are_those_of_all_rows_however_they_come(
    rows: list[tuple[str, str, int]], batch: int, most: int, buffer_rows: int
) -> None:
    whole = Inventory.from_arrow(table(rows))
    kept, used = streamed(table(rows), batch=batch, most=most, buffer_rows=buffer_rows)
    assert {node: size for node, size in used.items() if size} == {
        n: size for n, size in whole.used_bytes().items() if size
    }
    assert len(kept) + len(kept.unlisted) == len(whole)
    assert {kept.node_ids[at] for at in kept.node_index} <= {node.node_id for node in NODES}
    assert max(np.bincount(kept.node_index), default=0) <= most
    assert not kept.ambiguous.any()
    assert set(kept.keys.to_pylist()) & set(whole.ambiguous_keys()) == set(), "whose other copy was no candidate, too"


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, batch=st.integers(1, 20), buffer_rows=st.integers(1, 40))
def test_where_all_candidates_fit_the_plan_is_the_one_that_everything_gives(
    rows: list[tuple[str, str, int]], batch: int, buffer_rows: int
) -> None:
    whole = Inventory.from_arrow(table(rows))
    kept, used = streamed(table(rows), batch=batch, most=1_000, buffer_rows=buffer_rows)
    full = [node.model_copy(update={"used_bytes": used.get(node.node_id, 0)}) for node in NODES]
    plans = [plan_rebalance(full, rows, options=OPTIONS, now=NOW) for rows in (whole, kept)]
    verify_plan(plans[1], full, kept, OPTIONS, now=NOW)
    assert plans[0].imbalance_after == pytest.approx(plans[1].imbalance_after, abs=1e-9)
    assert plans[0].estimated_egress_bytes == plans[1].estimated_egress_bytes


def test_the_largest_are_kept_in_whatever_order_they_come() -> None:
    rng = np.random.default_rng(7)
    sizes = rng.permutation(np.arange(1, 5_001))
    rows = table([(f"k{at}", "n0", int(size)) for at, size in enumerate(sizes)])
    kept, _ = streamed(rows, batch=500, most=100, buffer_rows=900)
    assert len(kept) == 100
    assert {5_000 - at for at in range(25)} <= set(kept.size_bytes.tolist())


def test_rows_of_replica_groups_are_refused_where_the_others_may_not_be_kept() -> None:
    rows = table([("a", "n0", 1), ("b", "n1", 1)]).append_column("replica_group", pa.array(["g", None]))
    keeper = Keeper(NODES, most=10, options=OPTIONS, now=NOW)
    keeper.add(Inventory.from_arrow(rows.slice(1)))
    with pytest.raises(InvalidInventory, match="replica_group"):
        keeper.add(Inventory.from_arrow(rows))


@pytest.mark.parametrize("buffer_rows", [1, 100])
def test_a_candidate_that_is_listed_twice_on_its_node_is_refused(buffer_rows: int) -> None:
    rows = table([("a", "n0", 10), ("b", "n0", 20), ("c", "n1", 5), ("b", "n0", 20)])
    with pytest.raises(InvalidInventory, match=r"'b'.*listed twice on node 'n0'"):
        streamed(rows, batch=2, most=10, buffer_rows=buffer_rows)


def test_nothing_comes_of_nothing() -> None:
    kept, used = streamed(table([]), batch=1, most=1, buffer_rows=1)
    assert (len(kept), len(kept.unlisted), used) == (0, 0, {})


def kept_of(rows: pa.Table, options: RebalancerOptions, *, most: int, cuts: bool) -> set[str]:
    """The keys that are kept where it is decided after each batch; without cuts, of all rows of it."""
    keeper = Keeper(NODES, most=most, options=options, now=NOW, buffer_rows=0)
    for first in range(0, rows.num_rows, 40):
        if not cuts:
            keeper._cuts = Cuts(len(NODES), most_bytes=options.max_egress_bytes_per_cycle)
        keeper.add(Inventory.from_arrow(rows.slice(first, 40)))
    return set(keeper.kept()[0].keys.to_pylist())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    most=st.integers(1, 40),
    gravity=st.booleans(),
    moves=st.sampled_from([0, 5, 1000]),
    egress=st.sampled_from([1, 2_000, 10**9]),
)
def test_what_the_cuts_hold_back_would_not_have_been_kept(
    seed: int, most: int, gravity: bool, moves: int, egress: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = table([(f"k{at}", f"n{at % 3}", int(size)) for at, size in enumerate(rng.lognormal(6, 2, 400))])
    if gravity:
        rows = rows.append_column("gravity", pa.array(rng.choice([0.0, 0.2, 0.5, 0.9], rows.num_rows)))
    options = RebalancerOptions(max_moves_per_cycle=moves, max_egress_bytes_per_cycle=egress)
    assert kept_of(rows, options, most=most, cuts=True) == kept_of(rows, options, most=most, cuts=False)


def test_of_a_long_stream_the_cuts_let_few_rows_pass() -> None:
    rng = np.random.default_rng(3)
    cuts = Cuts(1, most_bytes=OPTIONS.max_egress_bytes_per_cycle)
    sizes = np.maximum(1, rng.lognormal(15, 2, 100_000)).astype(np.int64)
    gravity, node = np.zeros(len(sizes)), np.zeros(len(sizes), np.int64)
    _, cut = chosen(sizes, gravity, 1_000, OPTIONS, mean_bytes=float(sizes.mean()))
    assert cut is not None
    cuts.set(0, cut)
    assert np.count_nonzero(cuts.passing(node, sizes, gravity)) < 3_000
