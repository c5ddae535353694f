"""How good and how fast plans are: the least bytes there are, the relaxed optimum under the default budgets, a greedy rival.

Each case runs in a process of its own, so that the memory it takes above the inventory can be seen. The time is CPU time of one
thread, since the machine is shared; the wall time is in the samples.
"""

from __future__ import annotations

import heapq
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import highspy
import numpy as np
import pyarrow as pa

from rebalance_tasks.core.crush import CrushPlacementAlgorithm
from rebalance_tasks.core.imbalance import least_bytes
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.core.optimizer import GravityAwarePlacementOptimizer, GravityProviders
from rebalance_tasks.core.options import GB, RebalancerOptions
from rebalance_tasks.core.planner import plan_rebalance
from rebalance_tasks.core.verify import verify_plan
from tests.bench.report import Figure
from tests.support.exact import beaten_by, small_fleet
from tests.support.silent import SilentSolver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from rebalance_tasks.core.models import RebalancePlan
    from tests.bench.report import Report
    from tests.support.exact import Small

COMMAND: Final = "python -m tests.bench plan"
#: (objects, nodes, budgets); the limits below are for the first three.
CASES: Final = (
    (10_000_000, 100, "none"),
    (10_000_000, 1_000, "none"),
    (10_000_000, 100, "default"),
    (1_000_000, 100, "none"),
    (30_000_000, 100, "none"),
)
SECONDS: Final = {100: 5.0, 1_000: 8.0}
MEMORY_MB: Final = 600.0
#: Rows whose reading into an inventory is measured.
READ: Final = 10_000_000
SMALL: Final = 1_000
#: Small fleets between two lines of progress: a thousand take half an hour.
EVERY: Final = 50
RUNS: Final = 3
FREE: Final[dict[str, Any]] = {
    "max_moves_per_cycle": 10**9,
    "max_egress_bytes_per_cycle": 10**18,
    "max_cost_per_cycle": Decimal(10**12),
}


def run(report: Report, *, small: int = SMALL) -> None:
    """Plan each case and compare."""
    _small(report, small)
    _read(report, _alone(READ, 100, "read"))
    for objects, nodes, budgets in CASES:
        found = _alone(objects, nodes, budgets)
        _report(report, f"plan, {objects // 1_000_000} M objects × {nodes} nodes", found, budgets, objects=objects)
    _gravity(report)


def _alone(objects: int, nodes: int, what: str) -> dict[str, Any]:
    """Run a case in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.bench_plan", str(objects), str(nodes), what]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def _read(report: Report, found: dict[str, Any]) -> None:
    """Reading a table into an inventory: validation, duplicates, ambiguous keys."""
    name = f"reading {READ // 1_000_000} M rows into an inventory"
    detail = f"{found['table_mb']:.0f} MB above the table, the inventory included"
    report.add(Figure(f"{name}: memory above the inventory", found["memory_mb"], "MB", MEMORY_MB, COMMAND, {}, detail))
    report.add(Figure(f"{name}: CPU time", found["cpu_s"], "s", None, COMMAND))


def _gravity(report: Report, *, objects: int = 5_000_000) -> None:
    """Score objects whose five dimensions come from providers that answer with columns."""
    rng = np.random.default_rng(1)
    keys, nodes = [""] * objects, ["n1"] * objects
    columns = Columns(nodes, *(rng.random(objects) * scale for scale in (50.0, 5.0, 20.0, 0.1, 200.0, 2.0)))
    providers = GravityProviders(columns, columns, columns, columns, columns, columns)
    optimizer = GravityAwarePlacementOptimizer(CrushPlacementAlgorithm(), providers=providers)
    seconds = []
    for _ in range(RUNS):
        begun = time.process_time()
        optimizer.compute_gravity_batch(keys)
        seconds.append(time.process_time() - begun)
    rate = objects / statistics.median(seconds) / 1e6
    detail = f"{rate:.1f} M objects/s of CPU time"
    name = "gravity of 5 M objects, five providers: µs an object"
    report.add(Figure(name, 1 / rate, "µs", 0.2, COMMAND, {"cpu_s": seconds}, detail))


@dataclass(frozen=True, slots=True)
class Columns:
    """A host that knows every dimension as a column."""

    nodes: list[str]
    reads: NDArray[np.float64]
    writes: NDArray[np.float64]
    near: NDArray[np.float64]
    price: NDArray[np.float64]
    latency: NDArray[np.float64]
    inside: NDArray[np.float64]

    def current_nodes(self, _keys: Sequence[str]) -> list[str]:
        return self.nodes

    def reads_and_writes_per_hour(self, _keys: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self.reads, self.writes

    def last_access_utc(self, keys: Sequence[str]) -> list[None]:
        return [None] * len(keys)

    def colocated_dependencies(self, _keys: Sequence[str], _nodes: Sequence[str]) -> NDArray[np.float64]:
        return self.near

    def egress_cost_per_gb(self, _keys: Sequence[str], _nodes: Sequence[str]) -> Any:
        return self.price

    def latency_ms(self, _keys: Sequence[str], _nodes: Sequence[str]) -> NDArray[np.float64]:
        return self.latency

    def compliant(self, _keys: Sequence[str], _nodes: Sequence[str]) -> NDArray[np.float64]:
        return self.inside


def _report(report: Report, name: str, found: dict[str, Any], budgets: str, *, objects: int) -> None:
    main = objects == 10_000_000
    samples = {key: [float(x) for x in found[key]] for key in ("cpu_s", "wall_s")}
    detail = f"{found['moves']:,} moves in {found['pairs']} pairs, spread {found['before']:.4f} → {found['after']:.4f}"
    if budgets == "default":
        short = 1 - found["reduction"] / found["relaxed"]
        detail = (
            f"{detail}; the relaxed optimum lowers it by {found['relaxed']:.5f}, the plan by {found['reduction']:.5f}"
        )
        report.add(
            Figure(f"{name}, default budgets: short of the relaxed optimum", short, "", 0.02, COMMAND, samples, detail)
        )
        return
    report.add(Figure(f"{name}: bytes ÷ least", found["ratio"], "", 1.005 if main else None, COMMAND, samples, detail))
    report.add(Figure(f"{name}: spread over the target", max(0.0, found["after"] - 0.05), "", 0.0, COMMAND))
    limit = SECONDS[found["nodes"]] if main else None
    report.add(Figure(f"{name}: CPU time", statistics.median(found["cpu_s"]), "s", limit, COMMAND, samples))
    limit = MEMORY_MB if main else None
    report.add(Figure(f"{name}: memory above the inventory", found["memory_mb"], "MB", limit, COMMAND))
    if "greedy" in found:
        greedy = found["greedy"]
        for what in ("gravity", "cost", "moves"):
            ratio = float(found[what]) / float(greedy[what])
            detail = f"{float(found[what]):.6g} against {float(greedy[what]):.6g}"
            report.add(Figure(f"{name}: {what} ÷ fullest → emptiest greedy", ratio, "", 1.0, COMMAND, {}, detail))


def _small(report: Report, count: int) -> None:
    """Small fleets, against an exact search for anything that is two parts in a hundred better."""
    add_small(report, "random small fleets", COMMAND, _one_small, count)


def _one_small(seed: int) -> tuple[str, float]:
    return judged(small_fleet(seed), RebalancerOptions(**FREE))


def judged(fleet: Small, options: RebalancerOptions, *, moves: int | None = None) -> tuple[str, float]:
    """Plan a small fleet; return how the plan compares with the best there is, and the processor time it took."""
    begun = time.process_time()
    plan = plan_rebalance(fleet.nodes, fleet.inventory, options=options)
    seconds = time.process_time() - begun
    verify_plan(plan, fleet.nodes, fleet.inventory, options)
    if plan.imbalance_before < options.imbalance_threshold:
        return "balanced", seconds
    better = beaten_by(fleet, plan, options.effective_target, moves=moves, thorough=True)
    return "not told" if better is None else better or "within 2 %", seconds


def add_small(report: Report, what: str, command: str, one: Callable[[int], tuple[str, float]], count: int) -> None:
    """Judge small fleets by their seeds, one process a core, and report how many are beaten and how many nobody can tell."""
    seeds: dict[str, list[float]] = {"spread": [], "bytes": [], "not told": [], "within 2 %": [], "balanced": []}
    seconds = []
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for seed, (word, took) in enumerate(pool.map(one, range(count))):
            seeds[word].append(seed)
            seconds.append(took)
            if seed % EVERY == EVERY - 1:
                report.console.print(f"  {seed + 1} of {count} {what}: {_counted(seeds)}")
    detail = f"{_counted(seeds)}; a plan took {statistics.median(seconds):.2f} s (median), {max(seconds):.1f} s at most"
    beaten = float(len(seeds["spread"]) + len(seeds["bytes"]))
    series = {"cpu_s": seconds, **seeds}
    report.add(Figure(f"plan, {count} {what}: beaten by more than 2 %", beaten, "", 0, command, series, detail))
    untold = float(len(seeds["not told"]))
    report.add(Figure(f"plan, {count} {what}: nobody can tell", untold, "", 0, command))


def _counted(seeds: Mapping[str, list[float]]) -> str:
    return ", ".join(f"{what} {len(of)}" for what, of in seeds.items())


# -- one case, in a process of its own --------------------------------------------------------------------------------
def fleet_of(objects: int, count: int, *, seed: int = 1) -> tuple[list[NodeDescriptor], pa.Table]:
    """Return nodes over three zones with a spread of 0.50, and lognormal objects (σ = 2) of random gravity."""
    rng = np.random.default_rng(seed)
    sizes = np.maximum(1, rng.lognormal(11.0, 2.0, objects)).astype(np.int64)
    ends = np.cumsum(np.linspace(0.25, 0.75, count))
    place = np.searchsorted(ends / ends[-1] * sizes.sum(), np.cumsum(sizes) - sizes / 2).astype(np.int32)
    names = [f"n{i:04}" for i in range(count)]
    zones = [
        NodeDescriptor(
            node_id=name,
            capacity_bytes=int(sizes.sum() / (0.5 * count)),
            zone="abc"[i % 3],
            host=name,
            egress_cost_per_gb=Decimal("0.09"),
        )
        for i, name in enumerate(names)
    ]
    table = pa.table(
        {
            "object_key": _keys(objects),
            "size_bytes": sizes,
            "node_id": pa.DictionaryArray.from_arrays(pa.array(np.minimum(place, count - 1)), pa.array(names)),
            "gravity": rng.beta(1.0, 1.0, objects) * 0.9,
        }
    )
    return zones, table


def prices() -> dict[tuple[str, str], Decimal]:
    """What crosses a zone costs."""
    return {(a, b): Decimal(0) if a == b else Decimal("0.02") for a in "abc" for b in "abc"}


def _keys(count: int) -> pa.LargeStringArray:
    """``bucket/o000000042`` and so on, without a Python string each."""
    width = 17
    text = np.empty((count, width), np.uint8)
    text[:, :8] = np.frombuffer(b"bucket/o", np.uint8)
    number = np.arange(count)
    for at in range(width - 1, 7, -1):
        text[:, at] = 48 + number % 10
        number //= 10
    offsets = np.arange(count + 1, dtype=np.int64) * width
    return pa.LargeStringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text.reshape(-1)))


def peak_mb(*, begin: bool = False) -> float:
    """Largest resident set since the last beginning, in 10⁶ bytes (Linux)."""
    if begin:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))


def read(objects: int, count: int) -> dict[str, Any]:
    """Read a table and measure."""
    _, table = fleet_of(objects, count)
    base, ticks = peak_mb(begin=True), time.process_time()
    inventory = Inventory.from_arrow(table)
    _ = inventory.ambiguous
    cpu, peak = time.process_time() - ticks, peak_mb()
    return {"cpu_s": cpu, "table_mb": peak - base, "memory_mb": peak - peak_mb(begin=True), "rows": len(inventory)}


def greedy(nodes: list[NodeDescriptor], inventory: Inventory, target: float) -> dict[str, float]:
    """The rival: the next object of the fullest node goes to the emptiest, until the spread is small enough."""
    assert inventory.gravity is not None
    used = inventory.used_bytes()
    share = {name: used[name] / (node.capacity_bytes or 1) for node in nodes for name in [node.node_id]}
    capacity = nodes[0].capacity_bytes or 1
    order = np.argsort(inventory.node_index, kind="stable")
    ends = np.searchsorted(inventory.node_index[order], np.arange(len(inventory.node_ids) + 1))
    following = {name: iter(order[ends[i] : ends[i + 1]].tolist()) for i, name in enumerate(inventory.node_ids)}
    zone = {node.node_id: node.zone for node in nodes}
    full = [(-value, name) for name, value in share.items()]
    empty = [(value, name) for name, value in share.items()]
    heapq.heapify(full)
    heapq.heapify(empty)
    matrix = {pair: float(price) for pair, price in prices().items()}
    moves, size_bytes, held, cost = 0, 0, 0.0, 0.0
    while True:
        while -full[0][0] != share[full[0][1]]:
            heapq.heappop(full)
        while empty[0][0] != share[empty[0][1]]:
            heapq.heappop(empty)
        source, sink = full[0][1], empty[0][1]
        if share[source] - share[sink] <= target:
            break
        row = next(following[source])
        size = int(inventory.size_bytes[row])
        moves, size_bytes = moves + 1, size_bytes + size
        held += size * float(inventory.gravity[row])
        cost += size / GB * matrix[zone[source], zone[sink]]
        for name, sign in ((source, -1), (sink, 1)):
            share[name] += sign * size / capacity
            heapq.heappush(full, (-share[name], name))
            heapq.heappush(empty, (share[name], name))
    return {"moves": moves, "gravity": held / size_bytes, "cost": cost, "bytes": size_bytes}


def relaxed_spread(nodes: list[NodeDescriptor], inventory: Inventory, options: RebalancerOptions) -> float:
    """The smallest spread under the budgets if objects could be cut: a linear program with each object that could matter.

    Any plan of at most M moves takes from a node at most what its M largest objects hold; those are variables of their own.
    """
    solver = SilentSolver()
    unit, n = (nodes[0].capacity_bytes or 1) / 1e4, len(nodes)
    used = inventory.used_bytes()
    largest = [_largest(inventory, i, options.max_moves_per_cycle) for i in range(n)]
    sizes = np.concatenate(largest) / unit
    giver = np.repeat(np.arange(n), [len(rows) for rows in largest])
    part, taken, bottom, spread = 0, len(sizes), len(sizes) + n, len(sizes) + n + 1
    for size in [*np.ones(len(sizes)).tolist(), *([highspy.kHighsInf] * (n + 2))]:
        solver.addVar(0.0, size)
    solver.changeColCost(spread, 1.0)
    solver.changeColBounds(spread, options.effective_target * 1e4, highspy.kHighsInf)
    inf = highspy.kHighsInf

    def row(low: float, high: float, columns: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        solver.addRow(low, high, len(columns), columns.astype(np.int32), values)

    every = np.arange(len(sizes)) + part
    for i in range(n):
        mine = every[giver == i]
        level = used[inventory.node_ids[i]] / unit
        columns = np.concatenate([mine, [taken + i, bottom]])
        values = np.concatenate([-sizes[giver == i], [1.0, -1.0]])
        row(-level, inf, columns, values)
        row(-inf, -level, np.append(columns, spread), np.append(values, -1.0))
    row(0.0, 0.0, np.concatenate([every, np.arange(n) + taken]), np.concatenate([sizes, -np.ones(n)]))
    row(-inf, options.max_moves_per_cycle, every, np.ones(len(sizes)))
    row(-inf, options.max_egress_bytes_per_cycle / unit, every, sizes)
    solver.run()
    return float(np.array(solver.getSolution().col_value)[spread]) / 1e4


def _largest(inventory: Inventory, node: int, count: int) -> NDArray[np.int64]:
    sizes = inventory.size_bytes[inventory.node_index == node]
    return np.partition(sizes, max(0, len(sizes) - count))[max(0, len(sizes) - count) :]


def case(objects: int, count: int, budgets: str) -> dict[str, Any]:
    """Plan one fleet and measure."""
    nodes, table = fleet_of(objects, count)
    inventory = Inventory.from_arrow(table)
    options = RebalancerOptions(**FREE) if budgets == "none" else RebalancerOptions()
    _ = inventory.ambiguous
    base = peak_mb(begin=True)
    cpu, wall = [], []
    plan: RebalancePlan | None = None
    memory = 0.0
    for _ in range(RUNS):
        plan = None
        begun, ticks = time.perf_counter(), time.process_time()
        plan = plan_rebalance(nodes, inventory, options=options, prices=prices())
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - ticks)
        memory = memory or peak_mb() - base
    assert plan is not None
    verify_plan(plan, nodes, inventory, options, prices=prices())
    used = [inventory.used_bytes()[node.node_id] for node in nodes]
    least = least_bytes(used, [node.capacity_bytes or 0 for node in nodes], options.effective_target)
    moved = plan.estimated_egress_bytes
    found: dict[str, Any] = {
        "nodes": count,
        "before": plan.imbalance_before,
        "after": plan.imbalance_after,
        "ratio": moved / least,
        "moves": len(plan.moves),
        "pairs": len({(move.source_node, move.target_node) for move in plan.moves}),
        "gravity": sum(move.gravity * move.size_bytes for move in plan.moves) / moved,
        "cost": float(plan.estimated_cost),
        "cpu_s": cpu,
        "wall_s": wall,
        "memory_mb": memory,
    }
    if budgets == "default":
        found["reduction"] = plan.imbalance_before - plan.imbalance_after
        found["relaxed"] = plan.imbalance_before - relaxed_spread(nodes, inventory, options)
    elif objects == 10_000_000 and count == 100:
        found["greedy"] = greedy(nodes, inventory, options.effective_target)
    return found


if __name__ == "__main__":
    measured = read if sys.argv[3] == "read" else partial(case, budgets=sys.argv[3])
    print(json.dumps(measured(int(sys.argv[1]), int(sys.argv[2]))))
