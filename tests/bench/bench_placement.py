"""Placement against Ceph's crushtool and Swift's ring: speed, evenness, movement, and what a single call costs.

The same maps for all: zones, racks, hosts and nodes of mixed weights, three replicas in three zones. Speed is processor time
(the machine may be shared), medians of rounds in which both sides take turns; only the gain of a second thread is wall
time. Crushtool hashes numbers, ours get hashes; what hashing strings costs is a figure of its own.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from rebalance_tasks.core.crush import CompiledFleet, CrushPlacementAlgorithm
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.core.placement import kernels_numba, movement
from rebalance_tasks.core.placement.domains import Level, domain_path
from rebalance_tasks.core.placement.hashing import hash_keys
from tests.bench.placement_rivals import Crushtool, swift_python, swift_tables
from tests.bench.report import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from rebalance_tasks.core.crush import KernelName, RuleName
    from tests.bench.report import Report

COMMAND: Final = "python -m tests.bench placement"
REPLICAS: Final = 3
KEYS: Final = 1_000_000
CURVE: Final = (10_000, 100_000, KEYS)
ROUNDS: Final = 5
#: Leaves -> zones, racks a zone, hosts a rack, nodes a host.
SHAPES: Final = {100: (5, 2, 5, 2), 1_000: (10, 5, 5, 4)}
WEIGHTS: Final = (1.0, 2.0, 3.64, 4.0, 8.0)
#: How many times as fast as crushtool, one thread.
FASTER: Final[dict[tuple[RuleName, int], float]] = {
    ("tree", 100): 5.0,
    ("tree", 1_000): 7.0,
    ("flat", 100): 2.5,
    ("flat", 1_000): 1.8,
}
#: How many times as fast two threads have to be.
TWO_THREADS: Final = 1.7
RULES: Final[tuple[RuleName, ...]] = ("flat", "tree")
#: Sets of keys over which evenness is measured: one alone may be lucky.
KEY_SETS: Final = 10
SINGLE_CALLS: Final = 10_000
#: Keys with which movement is measured.
MOVED_KEYS: Final = {100: 300_000, 1_000: 1_000_000}


def fleet(leaves: int) -> list[NodeDescriptor]:
    """Return nodes of mixed weights, always the same."""
    rng = random.Random(leaves)
    zones, racks, hosts, nodes = SHAPES[leaves]
    return [
        NodeDescriptor(
            node_id=f"n{z}-{r}-{h}-{n}", zone=f"z{z}", rack=f"r{r}", host=f"h{h}", weight=rng.choice(WEIGHTS)
        )
        for z in range(zones)
        for r in range(racks)
        for h in range(hosts)
        for n in range(nodes)
    ]


def run(report: Report) -> None:
    """Measure all of it."""
    crushtool = Crushtool()
    if crushtool.program is None:
        report.skip("placement against crushtool", "it is not on PATH (Debian: apt-get install ceph-base)")
    try:
        for leaves in SHAPES:
            measure_speed(report, leaves, crushtool)
            measure_evenness(report, leaves, crushtool)
            measure_movement(report, leaves, crushtool)
    finally:
        crushtool.close()
    measure_hashing(report)
    measure_single_calls(report)
    measure_import(report)


# -- speed ----------------------------------------------------------------------------------------------------------


def measure_speed(report: Report, leaves: int, crushtool: Crushtool) -> None:
    """Compare the time of a placement over the curve, then threads."""
    nodes = fleet(leaves)
    keys = hash_keys([f"bucket/{i % 31}/object-{i}" for i in range(KEYS)])
    for size in CURVE:
        ours: dict[tuple[RuleName, KernelName], list[float]] = {
            (rule, kernel): [] for rule in RULES for kernel in ("numba", "numpy")
        }
        theirs: list[float] = []
        binary = None if crushtool.program is None else crushtool.compile(nodes)
        for _ in range(ROUNDS):
            for (rule, kernel), samples in ours.items():
                samples.append(cpu_seconds(placing(nodes, rule, kernel, keys[:size])))
            if binary is not None:
                theirs.append(crushtool.cpu_seconds(binary, size, REPLICAS))
        for (rule, kernel), samples in ours.items():
            limit = 1 / FASTER[rule, leaves] if kernel == "numba" else 1.0
            compare(report, f"{rule}, {kernel}, {leaves} leaves, {size:,} keys", samples, theirs, limit, size)
    for rule in RULES:
        measure_threads(report, nodes, rule, keys)


def placing(
    nodes: Sequence[NodeDescriptor],
    rule: RuleName,
    kernel: KernelName,
    keys: npt.NDArray[np.uint64],
    threads: int = 1,
) -> Callable[[], object]:
    """Return a call that places the keys on a compiled fleet which has placed before."""
    algorithm, compiled = CrushPlacementAlgorithm(threads=threads), CompiledFleet(nodes, rule=rule, kernel=kernel)
    algorithm.compute_placements(keys[:1], REPLICAS, compiled)
    return lambda: algorithm.compute_placements(keys, REPLICAS, compiled)


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the processor time of a call."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def compare(report: Report, name: str, ours: list[float], theirs: list[float], limit: float, keys: int) -> None:
    """Add the ratio of medians; only the largest size has a limit, since crushtool must first read its map."""
    mine = statistics.median(ours)
    if not theirs:
        report.add(Figure(f"placement, {name}", mine, "s", None, COMMAND, {"ours_s": ours}))
        return
    rival = statistics.median(theirs)
    report.add(
        Figure(
            name=f"placement, {name}: time ÷ crushtool's",
            value=mine / rival,
            unit="×",
            limit=limit if keys == KEYS else None,
            command=COMMAND,
            samples={"ours_cpu_s": ours, "crushtool_cpu_s": theirs},
            detail=f"{rival / mine:.1f} × as fast: {keys / mine / 1e6:.2f} against {keys / rival / 1e6:.2f} M keys/s",
        )
    )


def measure_threads(
    report: Report, nodes: Sequence[NodeDescriptor], rule: RuleName, keys: npt.NDArray[np.uint64]
) -> None:
    """Compare two threads with one: the best times of each, since other work only ever adds; and their processor time.

    On a machine that has no two idle processors the first says nothing; the second says what the threads cost each other.
    """
    one, two = (placing(nodes, rule, "numba", keys, threads) for threads in (1, 2))
    samples: dict[str, list[float]] = {"one_s": [], "two_s": [], "one_cpu_s": [], "two_cpu_s": []}
    for _ in range(2 * ROUNDS):
        for name, call in (("one", one), ("two", two)):
            begun = time.perf_counter()
            samples[f"{name}_cpu_s"].append(cpu_seconds(call))
            samples[f"{name}_s"].append(time.perf_counter() - begun)
    name = f"placement, {rule}, {len(nodes)} leaves: two threads ÷ one"
    ratio = min(samples["two_s"]) / min(samples["one_s"])
    report.add(Figure(name, ratio, "×", 1 / TWO_THREADS, COMMAND, samples, f"{1 / ratio:.2f} × as fast"))
    cost = statistics.median(samples["two_cpu_s"]) / statistics.median(samples["one_cpu_s"])
    detail = f"at most {2 / cost:.2f} × as fast"
    report.add(Figure(f"{name}, processor time of both", cost, "×", 2 / TWO_THREADS, COMMAND, detail=detail))


# -- evenness -------------------------------------------------------------------------------------------------------


def measure_evenness(report: Report, leaves: int, crushtool: Crushtool) -> None:
    """Compare loads per weight: primaries and all replicas with what chance gives, all replicas with crushtool."""
    nodes = fleet(leaves)
    weights = np.array([node.weight for node in nodes])
    theirs = [
        loads(crushtool.placements(nodes, KEYS, REPLICAS, first_key=number * KEYS), leaves)
        for number in range(KEY_SETS if crushtool.program else 0)
    ]
    for rule in RULES:
        primaries, held = [], []
        for number in range(KEY_SETS):
            keys = [f"set-{number}/object-{i}" for i in range(KEYS)]
            rows = CrushPlacementAlgorithm(rule=rule, kernel="numba").compute_placements(keys, REPLICAS, nodes)
            primaries.append(loads(rows[:, 0], leaves))
            held.append(loads(rows, leaves))
        name = f"placement, {rule}, {leaves} leaves"
        laws = {"primaries": (primaries, weights / weights.sum())}
        if rule == "flat":
            laws["all replicas"] = held, shares(nodes)
        for what, (counted, law) in laws.items():
            chi = [float(((load - KEYS * law) ** 2 / (KEYS * law)).sum() / (leaves - 1)) for load in counted]
            figure = f"{name}: chi² per degree of freedom of {what}"
            report.add(Figure(figure, statistics.median(chi), "", 1.2, COMMAND, {"chi": chi}))
        if theirs:
            compare_spreads(report, name, [load / weights for load in held], [load / weights for load in theirs])


def shares(nodes: Sequence[NodeDescriptor]) -> npt.NDArray[np.float64]:
    """Return how many replicas of a key each node is to hold where each zone is drawn in proportion to weight among those left.

    That is the law of `flat` and of crushtool. The zones are taken in every order they may come in; within a zone everything
    is in proportion to weight.
    """
    weight: dict[str, float] = {}
    for node in nodes:
        weight[node.zone] = weight.get(node.zone, 0.0) + node.weight
    held = dict.fromkeys(weight, 0.0)
    for order in itertools.permutations(weight, REPLICAS):
        chance, left = 1.0, sum(weight.values())
        for zone in order:
            chance *= weight[zone] / left
            left -= weight[zone]
        for zone in order:
            held[zone] += chance
    return np.array([held[node.zone] * node.weight / weight[node.zone] for node in nodes])


def compare_spreads(
    report: Report, name: str, ours: list[npt.NDArray[np.float64]], theirs: list[npt.NDArray[np.float64]]
) -> None:
    """Compare how unevenly all replicas lie.

    `tree` has to be at least as even. `flat` follows the same law as crushtool (ADR 29: it cannot help it), so its ratio is
    1 give or take chance, which says nothing about either; that it keeps the law is a figure of its own.
    """
    ratios = [relative_spread(mine) / relative_spread(rival) for mine, rival in zip(ours, theirs, strict=True)]
    mine, rival = relative_spread(sum(ours[1:], ours[0])), relative_spread(sum(theirs[1:], theirs[0]))
    chance = 2 * statistics.stdev(ratios) / len(ratios) ** 0.5
    figure = f"{name}: relative stddev of load per weight, all replicas of {len(ours) * KEYS:,} keys ÷ crushtool's"
    told = f"{mine:.3%} against {rival:.3%}, ± {chance:.2%} by chance"
    limit = 1.0 if "tree" in name else None
    report.add(Figure(figure, mine / rival, "×", limit, COMMAND, {"by_set": ratios}, told))


def loads(rows: npt.NDArray[np.integer], leaves: int) -> npt.NDArray[np.float64]:
    """Return how often each node occurs."""
    return np.bincount(rows.ravel(), minlength=leaves).astype(np.float64)


def relative_spread(load: npt.NDArray[np.float64]) -> float:
    """Return the standard deviation, relative to the mean."""
    return float(load.std() / load.mean())


# -- movement -------------------------------------------------------------------------------------------------------


def changes(nodes: list[NodeDescriptor]) -> dict[str, tuple[list[NodeDescriptor], list[NodeDescriptor]]]:
    """Return the maps before and after each change: of one node, one host, one rack, in the middle of the fleet."""
    chosen = nodes[len(nodes) // 2]
    found = {}
    for part, level in (("node", Level.NODE), ("host", Level.HOST), ("rack", Level.RACK)):
        here = domain_path(chosen)[level]
        without = [node for node in nodes if domain_path(node)[level] != here]
        heavier = [node if node in without else node.model_copy(update={"weight": node.weight * 1.5}) for node in nodes]
        found[f"adding a {part}"] = (without, nodes)
        found[f"removing a {part}"] = (nodes, without)
        found[f"re-weighting a {part} (× 1.5)"] = (nodes, heavier)
    return found


def measure_movement(report: Report, leaves: int, crushtool: Crushtool) -> None:
    """Compare what moves with the least that had to."""
    python = swift_python() if leaves == min(SHAPES) else None
    if python is None and leaves == min(SHAPES):
        report.skip(
            "movement of Swift's ring", "Swift is not installed; SWIFT_PYTHON may name an interpreter that has it"
        )
    for name, (before, after) in changes(fleet(leaves)).items():
        ratios = {rule: ours_moved(before, after, rule, MOVED_KEYS[leaves]) for rule in RULES}
        rivals = {}
        if crushtool.program is not None:
            rows = [crushtool.placements(nodes, MOVED_KEYS[leaves], REPLICAS) for nodes in (before, after)]
            rivals["crushtool"] = moved_ratio(before, after, *rows)
        if python is not None:
            rivals["Swift"] = moved_ratio(before, after, *swift_tables(python, before, after, REPLICAS))
        told = ", ".join(f"{rival} {ratio:.3f}" for rival, ratio in rivals.items())
        samples = {rival: [ratio] for rival, ratio in (*ratios.items(), *rivals.items())}
        title = f"movement ÷ least, {leaves} leaves, {name}"
        report.add(Figure(f"{title}: flat", ratios["flat"], "×", 1.02, COMMAND, samples, told))
        report.add(Figure(f"{title}: tree", ratios["tree"], "×", rivals.get("crushtool"), COMMAND, samples, told))


def ours_moved(before: list[NodeDescriptor], after: list[NodeDescriptor], rule: RuleName, keys: int) -> float:
    """Return moved ÷ least of one rule."""
    algorithm = CrushPlacementAlgorithm(rule=rule, kernel="numba")
    return algorithm.measure_movement(before, after, keys, REPLICAS).ratio or 1.0


def moved_ratio(
    before: list[NodeDescriptor],
    after: list[NodeDescriptor],
    was: npt.NDArray[np.integer],
    now: npt.NDArray[np.integer],
) -> float:
    """Return moved ÷ least of placements made elsewhere, by the same measure."""
    rows = was.astype(np.int32), now.astype(np.int32)
    return movement.compare(CompiledFleet(before), CompiledFleet(after), *rows).ratio or 1.0


# -- around it ------------------------------------------------------------------------------------------------------


def measure_hashing(report: Report) -> None:
    """Compare hashing a million strings with placing them, in one thread, on the smaller fleet (the harder case)."""
    keys = [f"bucket/{i % 31}/object-{i}" for i in range(KEYS)]
    batches = {"list of str": keys, "Arrow": pa.array(keys)}
    hashes = hash_keys(keys)
    for rule in RULES:
        for kernel, compiled in (("numba", kernels_numba), ("numpy", None)):
            placed = placing(fleet(100), rule, "numba" if compiled else "numpy", hashes)
            for batch, given in batches.items():
                hashing_s, placing_s = [], []
                for _ in range(ROUNDS):
                    hashing_s.append(cpu_seconds(partial(hash_keys, given, compiled)))
                    placing_s.append(cpu_seconds(placed))
                ratio = statistics.median(hashing_s) / statistics.median(placing_s)
                name = f"hashing {KEYS:,} keys ({batch}) ÷ placing them: {rule}, {kernel}, 100 leaves"
                samples = {"hashing_cpu_s": hashing_s, "placing_cpu_s": placing_s}
                detail = f"{statistics.median(hashing_s) * 1e3:.0f} ms"
                report.add(Figure(name, ratio, "×", 0.25, COMMAND, samples, detail))


def measure_single_calls(report: Report) -> None:
    """Time single calls, and compiling a thousand nodes with all that the first batch prepares."""
    nodes = fleet(1_000)
    names = [f"object-{i}" for i in range(SINGLE_CALLS)]
    for rule in RULES:
        compiled = CompiledFleet(nodes, rule=rule, kernel="numba")
        compiled.place("warm", REPLICAS)
        samples = [cpu_seconds(partial(place_singly, compiled, names)) / SINGLE_CALLS * 1e6 for _ in range(ROUNDS)]
        name = f"a single call, {rule}, 1,000 nodes, {REPLICAS} replicas, numba"
        report.add(Figure(name, statistics.median(samples), "µs", 5.0, COMMAND, {"us": samples}))
        samples = [cpu_seconds(partial(prepared, nodes, rule)) * 1e3 for _ in range(3 * ROUNDS)]
        name = f"compiling 1,000 nodes, {rule}, ready for a batch"
        report.add(Figure(name, statistics.median(samples), "ms", 10.0, COMMAND, {"ms": samples}))


def place_singly(compiled: CompiledFleet, keys: list[str]) -> None:
    """Place key after key."""
    for key in keys:
        compiled.place(key, REPLICAS)


def prepared(nodes: list[NodeDescriptor], rule: RuleName) -> None:
    """Compile a fleet and all that placing on it needs."""
    compiled = CompiledFleet(nodes, rule=rule, kernel="numba")
    compiled.compiled().place_compiled(
        kernels_numba, np.empty(0, dtype=np.uint64), np.empty((0, REPLICAS), dtype=np.int32)
    )


def measure_import(report: Report) -> None:
    """Time ``import rebalance_tasks`` and placement itself, in fresh processes."""
    for module in ("rebalance_tasks", "rebalance_tasks.core.crush"):
        samples = []
        for _ in range(ROUNDS):
            told = subprocess.run(
                [sys.executable, "-X", "importtime", "-c", f"import {module}"],
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONWARNINGS": ""},
            ).stderr
            lines = [line.split("|") for line in told.splitlines() if line.count("|") == 2]
            samples.append(
                sum(int(parts[1]) for parts in lines if parts[2].strip() in {module, "rebalance_tasks"}) / 1e6
            )
        limit = 0.5 if module == "rebalance_tasks" else None
        report.add(Figure(f"import {module}", statistics.median(samples), "s", limit, COMMAND, {"s": samples}))
