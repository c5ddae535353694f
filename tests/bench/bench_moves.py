"""Plans where the number of moves binds: small fleets against an integer program, larger ones against what cut-up objects could do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.planner import plan_rebalance
from rebalance_tasks.core.verify import verify_plan
from tests.bench.bench_plan import add_small, judged, relaxed_spread
from tests.bench.report import Figure
from tests.support.exact import small_fleet

if TYPE_CHECKING:
    from tests.bench.report import Report

COMMAND: Final = "python -m tests.bench moves"
#: Random small fleets, with one to five moves each.
SMALL: Final = 200
MOST_MOVES: Final = 5
#: (nodes, moves, objects a node).
LARGE: Final = ((20, 25, 5_000), (100, 100, 2_000), (100, 300, 2_000))
#: A share: water is no plan, and the largest objects are a good part of a small flow.
SHORT: Final = 0.05
CPU_LIMIT_S: Final = 5.0


def run(report: Report, *, small: int = SMALL) -> None:
    """Plan and compare."""
    add_small(report, f"random small fleets with 1 to {MOST_MOVES} moves", COMMAND, _one_small, small)
    for nodes, moves, objects in LARGE:
        _large(report, nodes, moves, objects)


def _one_small(seed: int) -> tuple[str, float]:
    moves = 1 + seed % MOST_MOVES
    options = RebalancerOptions(max_moves_per_cycle=moves, max_egress_bytes_per_cycle=10**18)
    return judged(small_fleet(seed), options, moves=moves)


def _large(report: Report, count: int, moves: int, objects: int) -> None:
    """Lognormal objects on nodes that are 0.2 to 0.8 full."""
    rng = np.random.default_rng(count + moves)
    fill = np.linspace(0.2, 0.8, count)
    sizes = np.floor(rng.lognormal(8, 2, count * objects)).astype(np.int64) + 1
    at = rng.choice(count, count * objects, p=fill / fill.sum())
    keys, ids = [f"k{number}" for number in range(len(sizes))], [f"n{number:03}" for number in at]
    inventory = Inventory.from_arrow(pa.table({"object_key": keys, "size_bytes": sizes, "node_id": ids}))
    capacity = int(max(inventory.used_bytes().values()) / 0.8)
    nodes = [NodeDescriptor(node_id=node_id, capacity_bytes=capacity) for node_id in inventory.node_ids]
    options = RebalancerOptions(max_moves_per_cycle=moves, max_egress_bytes_per_cycle=10**18)
    begun = time.process_time()
    plan = plan_rebalance(nodes, inventory, options=options)
    seconds = time.process_time() - begun
    verify_plan(plan, nodes, inventory, options)
    best = plan.imbalance_before - relaxed_spread(nodes, inventory, options)
    short = 1 - (plan.imbalance_before - plan.imbalance_after) / best
    name = f"plan, {count} nodes × {moves} moves"
    detail = f"spread {plan.imbalance_before:.4f} → {plan.imbalance_after:.4f}, {len(plan.moves)} moves"
    report.add(Figure(f"{name}: short of the relaxed optimum", short, "", SHORT, COMMAND, {}, detail))
    report.add(Figure(f"{name}: CPU time", seconds, "s", CPU_LIMIT_S, COMMAND, {"cpu_s": [seconds]}))
