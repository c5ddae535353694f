"""Of a node that holds very many objects only candidates are kept: what a plan made of them may differ in, and what not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance_tasks.core.inventory import Inventory, Unlisted
from rebalance_tasks.core.keeping.candidates import could_leave, thinned
from rebalance_tasks.core.models import NodeDescriptor, RebalancePlan
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.planner import plan_rebalance
from rebalance_tasks.core.planning import search as planner_search
from rebalance_tasks.core.verify import verify_plan
from tests.bench.bench_plan import relaxed_spread

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def fleet_of(seed: int, *, nodes: int, objects: int) -> tuple[list[NodeDescriptor], list[Inventory]]:
    """Nodes filled from 20 to 80 %, lognormal objects, some too young or excluded, with or without measures of use."""
    rng = np.random.default_rng(seed)
    used = rng.random(objects) < 0.5
    parts = []
    for number in range(nodes):
        count = int(objects * rng.uniform(0.2, 1.0))
        columns: dict[str, Any] = {
            "object_key": [f"n{number}/{'x' if rng.random() < 0.05 else 'o'}{at}" for at in range(count)],
            "size_bytes": np.floor(rng.lognormal(8, rng.choice([0.5, 2.0]), count)).astype(np.int64),
            "node_id": [f"n{number}"] * count,
            "mtime_utc": [NOW - timedelta(seconds=int(s)) for s in rng.integers(0, 2000, count)],
        }
        if used[0]:
            columns["reads_per_hour"] = rng.exponential(5.0, count)
        parts.append(Inventory.from_arrow(pa.table(columns)))
    capacity = int(max(part.size_bytes.sum() for part in parts) / 0.8) + 1
    described = [
        NodeDescriptor(
            node_id=f"n{number}",
            capacity_bytes=capacity,
            used_bytes=int(part.size_bytes.sum()),
            zone="ab"[number % 2],
            exclude=("*/x*",),
        )
        for number, part in enumerate(parts)
    ]
    return described, parts


def merged(nodes: list[NodeDescriptor], parts: list[Inventory], options: RebalancerOptions, most: int) -> Inventory:
    """What survey tasks would hand in, put together."""
    kept = [
        thinned(node, part, most=most, options=options, now=NOW)[0] for node, part in zip(nodes, parts, strict=True)
    ]
    whole = Inventory.concat(kept)
    object.__setattr__(whole, "unlisted", sum((part.unlisted for part in kept), Unlisted()))
    return whole


def plans(
    nodes: list[NodeDescriptor], parts: list[Inventory], options: RebalancerOptions, most: int
) -> tuple[RebalancePlan, RebalancePlan]:
    """The plan of everything, and that of candidates; both keep every rule of the whole inventory."""
    everything, candidates = Inventory.concat(parts), merged(nodes, parts, options, most)
    assert len(candidates) + len(candidates.unlisted) == len(everything)
    found = []
    for inventory in (everything, candidates):
        plan = plan_rebalance(nodes, inventory, options=options, now=NOW)
        verify_plan(plan, nodes, inventory, options, now=NOW)
        verify_plan(plan, nodes, everything, options, now=NOW)
        found.append(plan)
    return found[0], found[1]


fleets = st.tuples(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 120))


@settings(max_examples=12, deadline=None)
@given(fleet=fleets, most_moves=st.sampled_from([0, 5, 1000]))
def test_where_all_that_can_move_is_kept_the_plan_is_that_of_everything(
    fleet: tuple[int, int, int], most_moves: int
) -> None:
    seed, nodes, objects = fleet
    described, parts = fleet_of(seed, nodes=nodes, objects=objects)
    options = RebalancerOptions(max_moves_per_cycle=most_moves)
    with pytest.MonkeyPatch.context() as patch:
        # How long whole objects are searched for makes no difference to whether both plans are the same.
        patch.setattr(planner_search, "_MOST_SEARCHES", 50)
        patch.setattr(planner_search, "_MORE_NODES", 100)
        whole, kept = plans(described, parts, options, most=objects)
    # Examples of what stands in the way are of what a survey saw; everything else is the same.
    assert whole.model_copy(update={"plan_id": "", "cannot": ()}) == kept.model_copy(
        update={"plan_id": "", "cannot": ()}
    )


@pytest.mark.parametrize("seed", range(8))
def test_a_plan_of_candidates_mostly_lowers_the_spread_nearly_as_far(seed: int) -> None:
    """As far but for a twentieth, where four times as many objects of each node are kept as moves are allowed, and more are there."""
    nodes, moves = 2 + seed % 5, (20, 60)[seed % 2]
    described, parts = fleet_of(seed, nodes=nodes, objects=600)
    options = RebalancerOptions(max_moves_per_cycle=moves, imbalance_threshold=0.05)
    whole, kept = plans(described, parts, options, most=4 * moves)
    lowered = [plan.imbalance_before - plan.imbalance_after for plan in (whole, kept)]
    assert lowered[1] >= lowered[0] * 0.95 - 1e-9


def test_few_moves_are_not_spent_on_the_last_bytes_of_a_flow() -> None:
    """Found by a search for counter-examples: three of twenty moves went to small objects, and the plan of candidates fell a quarter short."""
    described, parts = fleet_of(1_000_000, nodes=6, objects=600)
    options = RebalancerOptions(max_moves_per_cycle=20, imbalance_threshold=0.05)
    whole, kept = plans(described, parts, options, most=80)
    best = whole.imbalance_before - relaxed_spread(described, Inventory.concat(parts), options)
    lowered = [plan.imbalance_before - plan.imbalance_after for plan in (whole, kept)]
    assert lowered[0] == lowered[1]
    assert 0.95 * best <= lowered[0] <= best


@pytest.mark.parametrize("most", [1, 7, 100])
def test_no_more_are_kept_than_asked_for_and_the_rest_is_counted(most: int) -> None:
    [node, *_], [part, *_] = fleet_of(3, nodes=2, objects=400)
    options = RebalancerOptions()
    kept, rest = thinned(node, part, most=most, options=options, now=NOW)
    assert len(kept) == min(most, len(kept))
    assert sorted([*kept.keys.to_pylist(), *part.keys.take(pa.array(rest)).to_pylist()]) == sorted(
        part.keys.to_pylist()
    )
    movable = len(kept) + kept.unlisted.objects.get("not_a_candidate", 0)
    assert len(kept.unlisted) + len(kept) == len(part)
    assert {"excluded", "too_young"} <= kept.unlisted.objects.keys()
    assert movable + kept.unlisted.objects["excluded"] + kept.unlisted.objects["too_young"] <= len(part)
    assert kept.unlisted.movable_bytes + int(kept.size_bytes.sum()) <= int(part.size_bytes.sum())


def test_the_largest_and_the_least_held_are_among_those_kept() -> None:
    [node, *_], [part, *_] = fleet_of(5, nodes=2, objects=400)
    options = RebalancerOptions(min_object_age="0s")
    everything, _ = thinned(node, part, most=10**6, options=options, now=NOW)
    kept, _ = thinned(node, part, most=40, options=options, now=NOW)
    largest = np.argsort(-everything.size_bytes)[:10]
    assert {everything.key(int(row)) for row in largest} <= set(kept.keys.to_pylist())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    moves=st.integers(0, 60),
    egress=st.integers(1, 10**7),
    taken=st.lists(st.integers(0, 10**6), max_size=60),
)
def test_whatever_leaves_a_node_within_the_budgets_as_many_kept_objects_hold_as_many_bytes(
    seed: int, moves: int, egress: int, taken: list[int]
) -> None:
    """So the best that cut-up objects could do is the same for candidates as for everything."""
    [node, *_], [part, *_] = fleet_of(seed, nodes=2, objects=400)
    options = RebalancerOptions(max_moves_per_cycle=moves, max_egress_bytes_per_cycle=egress)
    everything, _ = thinned(node, part, most=10**6, options=options, now=NOW)
    kept, _ = thinned(
        node, part, most=max(1, 2 * len(could_leave(everything.size_bytes, options))), options=options, now=NOW
    )
    sizes = everything.size_bytes
    leaves: list[int] = []
    for at in dict.fromkeys(number % len(sizes) for number in taken) if len(sizes) else ():
        if len(leaves) < moves and sum(leaves) + int(sizes[at]) <= egress:
            leaves.append(int(sizes[at]))
    allowed = kept.size_bytes[kept.size_bytes <= egress]
    assert min(egress, int(np.sort(allowed)[::-1][: len(leaves)].sum())) >= sum(leaves)
