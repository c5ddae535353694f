"""How many cycles balance takes to return after each disturbance, against the fewest that the budgets allow, and how fast that plays.

A million objects on twenty nodes over fifty cycles, with a node added, drained, lost and restored, hot data that shifts
and growth on one node; every plan is verified. Once the bytes of a cycle bind, once the moves. The time is CPU time.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.simulating.events import Scenario, parse_event
from rebalance_tasks.core.simulating.fleet import synthetic_fleet
from rebalance_tasks.core.simulation import simulate
from tests.bench.report import Figure

if TYPE_CHECKING:
    from rebalance_tasks.core.simulation import Simulation
    from tests.bench.report import Report

OBJECTS: Final = 1_000_000
NODES: Final = 20
CYCLES: Final = 50
COMMAND: Final = "python -m tests.bench simulate"
#: "Reasonable" for an operator who waits for the picture.
CPU_LIMIT_S: Final = 60.0


def run(report: Report, *, objects: int = OBJECTS) -> None:
    """Play both and compare."""
    for bound in ("bytes", "moves"):
        simulation, seconds = play(bound, objects=objects)
        over = [
            (found.cycles if found.cycles is not None else CYCLES) - (found.bound.cycles or 0)
            for found in simulation.recoveries
            if not found.overtaken
        ]
        told = ", ".join(
            f"{found.cause}: {found.cycles} of {found.bound.cycles}" for found in simulation.recoveries[:5]
        )
        series = {
            "cycles": [float(f.cycles or CYCLES) for f in simulation.recoveries],
            "over": [float(o) for o in over],
        }
        name = f"simulation, {bound} bind"
        worst = float(max(over, default=CYCLES))
        report.add(Figure(f"{name}: cycles above the fewest", worst, "", 0, COMMAND, series, told))
        repeated = float(simulation.repeated_moves)
        report.add(Figure(f"{name}: objects twice within their cooldown", repeated, "", 0, COMMAND))
        detail = f"{objects:,} objects × {CYCLES} cycles, {simulation.total_moves:,} moves, every plan verified"
        report.add(Figure(f"{name}: CPU time", seconds, "s", CPU_LIMIT_S, COMMAND, {"cpu_s": [seconds]}, detail))


def play(bound: str, *, objects: int) -> tuple[Simulation, float]:
    """Play the scenario with one budget binding; return it and its CPU time."""
    nodes, inventory = synthetic_fleet(nodes=NODES, objects=objects, seed=3)
    total, capacity = int(inventory.size_bytes.sum()), nodes[0].capacity_bytes
    lines = [
        f"8 add node_id=x1 capacity_bytes={capacity} zone=a",
        "30 lose node_id=n07 restore=true",
        "34 heat share=0.2 nodes=n01,n02",
        f"38 growth bytes={total // 20} until=38 nodes=n05",
    ]
    if bound == "bytes":
        # An object is a move: where moves bind, a drain is a division, and this one would take half the scenario.
        lines.append("16 drain node_id=n03")
    budgets: dict[str, Any] = {
        "bytes": {"max_moves_per_cycle": 10**9, "max_egress_bytes_per_cycle": total // 30},
        "moves": {"max_moves_per_cycle": objects // 4_000, "max_egress_bytes_per_cycle": total},
    }
    # A cycle a day, and every object may move again by the next: what delays is the budgets alone.
    options = RebalancerOptions(throttle_bytes_per_sec=None, object_cooldown=timedelta(hours=23), **budgets[bound])
    scenario = Scenario(cycles=CYCLES, every=timedelta(hours=24), events=tuple(map(parse_event, lines)))
    begun = time.process_time()
    simulation = simulate(nodes, inventory, options=options, scenario=scenario, start=datetime(2026, 1, 1, tzinfo=UTC))
    return simulation, time.process_time() - begun
