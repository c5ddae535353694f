"""The rivals of placement, on the same maps: Ceph's crushtool (Debian's ceph-base) and the ring of OpenStack Swift.

Neither is a dependency. crushtool is looked for on PATH; Swift in the interpreter that ``SWIFT_PYTHON`` names
(``python -m venv V && V/bin/pip install swift``), else in this one.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from rebalance_tasks.core.models import NodeDescriptor

#: Ceph's own defaults since Jewel (`ceph osd crush tunables optimal`).
TUNABLES: Final = {
    "choose_local_tries": 0,
    "choose_local_fallback_tries": 0,
    "choose_total_tries": 50,
    "chooseleaf_descend_once": 1,
    "chooseleaf_vary_r": 1,
    "chooseleaf_stable": 1,
    "straw_calc_version": 1,
}
RULE: Final = """rule apart {
  id 0
  type replicated
  min_size 1
  max_size 10
  step take default
  step chooseleaf firstn 0 type zone
  step emit
}
"""
#: Partitions of Swift's ring: 2¹⁶, more than 600 a device at 100 devices.
PART_POWER: Final = 16
SWIFT_SCRIPT: Final = """
import json, sys
from swift.common.ring import RingBuilder
power, replicas, before, after = json.load(sys.stdin)
builder = RingBuilder(power, replicas, 0)
def device(d):
    return {"id": d["id"], "region": 1, "zone": d["zone"], "ip": d["host"], "port": 6200, "device": d["name"],
            "weight": d["weight"]}
def table():
    ring = builder.get_ring()
    return [list(row) for row in ring._replica2part2dev_id]
for d in before:
    builder.add_dev(device(d))
builder.rebalance(seed=1)
first = table()
old = {d["id"]: d for d in before}
new = {d["id"]: d for d in after}
for i in old.keys() - new.keys():
    builder.remove_dev(i)
for i in new.keys() - old.keys():
    builder.add_dev(device(new[i]))
for i in new.keys() & old.keys():
    if new[i]["weight"] != old[i]["weight"]:
        builder.set_dev_weight(i, new[i]["weight"])
builder.rebalance(seed=1)
json.dump([first, table()], sys.stdout)
"""


class Crushtool:
    """crushtool with ids that stay the same from map to map, as Ceph keeps them."""

    def __init__(self) -> None:
        self.program = shutil.which("crushtool")
        self._buckets: dict[str, int] = {}
        self._devices: dict[str, int] = {}
        self._placed: dict[tuple[object, ...], npt.NDArray[np.int32]] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="rebalance-crush-"))

    def close(self) -> None:
        """Remove the maps."""
        shutil.rmtree(self._folder)

    def compile(self, nodes: Sequence[NodeDescriptor]) -> Path:
        """Write the map of a fleet, compiled."""
        text, binary = self._folder / "map.txt", self._folder / "map.bin"
        text.write_text(self._text(nodes), encoding="utf-8")
        subprocess.run([str(self.program), "-c", str(text), "-o", str(binary)], check=True, capture_output=True)
        return binary

    def cpu_seconds(self, binary: Path, keys: int, replicas: int) -> float:
        """Return the processor time of placing so many keys, with nothing printed but the utilisation at the end."""
        begun = _children_cpu()
        self._test(binary, keys, replicas, "--show-utilization")
        return _children_cpu() - begun

    def placements(
        self, nodes: Sequence[NodeDescriptor], keys: int, replicas: int, first_key: int = 0
    ) -> npt.NDArray[np.int32]:
        """Place keys: int32 (keys, replicas), positions in `nodes`; a fleet that was asked for before costs nothing."""
        asked = (*((node.node_id, node.weight) for node in nodes), keys, replicas, first_key)
        if asked not in self._placed:
            self._placed[asked] = self._placements(nodes, keys, replicas, first_key)
        return self._placed[asked]

    def _placements(
        self, nodes: Sequence[NodeDescriptor], keys: int, replicas: int, first_key: int
    ) -> npt.NDArray[np.int32]:
        printed = self._test(self.compile(nodes), keys, replicas, "--show-mappings", first_key=first_key)
        digits = printed.translate(bytes(c if 48 <= c < 58 else 32 for c in range(256)))
        rows = np.fromstring(digits.decode(), dtype=np.int64, sep=" ").reshape(keys, 2 + replicas)[:, 2:]
        position = np.full(max(self._devices.values()) + 1, -1)
        position[[self._devices[node.node_id] for node in nodes]] = np.arange(len(nodes))
        return position[rows].astype(np.int32)

    def _test(self, binary: Path, keys: int, replicas: int, show: str, *, first_key: int = 0) -> bytes:
        numbers = ["--min-x", str(first_key), "--max-x", str(first_key + keys - 1), "--num-rep", str(replicas)]
        command = [str(self.program), "-i", str(binary), "--test", "--rule", "0", *numbers, show]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def _text(self, nodes: Sequence[NodeDescriptor]) -> str:
        numbers = [self._devices.setdefault(node.node_id, len(self._devices)) for node in nodes]
        lines = [f"tunable {name} {value}" for name, value in TUNABLES.items()]
        lines += [f"device {number} osd.{number}" for number in sorted(numbers)]
        lines += [f"type {i} {name}" for i, name in enumerate(("osd", "host", "rack", "zone", "root"))]
        below: dict[str, list[tuple[str, float]]] = {}
        for node, number in zip(nodes, numbers, strict=True):
            below.setdefault(f"host {node.zone}.{node.rack}.{node.host}", []).append((f"osd.{number}", node.weight))
        for kind in ("host", "rack", "zone", "root"):
            above: dict[str, list[tuple[str, float]]] = {}
            for name, items in below.items():
                lines.append(self._bucket(name, items))
                path = name.removeprefix(f"{kind} ")
                parent = {"host": "rack", "rack": "zone"}.get(kind)
                key = f"{parent} {path.rpartition('.')[0]}" if parent else "root default"
                above.setdefault(key, []).append((path, sum(weight for _, weight in items)))
            below = above
        return "\n".join(lines) + "\n" + RULE

    def _bucket(self, name: str, items: list[tuple[str, float]]) -> str:
        number = self._buckets.setdefault(name, -1 - len(self._buckets))
        body = "".join(f"  item {item} weight {weight:.5f}\n" for item, weight in items)
        return f"{name} {{\n  id {number}\n  alg straw2\n  hash 0\n{body}}}"


def swift_python() -> str | None:
    """Return an interpreter that has Swift, or None."""
    python = os.environ.get("SWIFT_PYTHON", sys.executable)
    found = subprocess.run([python, "-c", "import swift.common.ring"], check=False, capture_output=True)
    return python if found.returncode == 0 else None


def swift_tables(
    python: str, before: Sequence[NodeDescriptor], after: Sequence[NodeDescriptor], replicas: int
) -> list[npt.NDArray[np.int32]]:
    """Return where Swift's ring puts its partitions on both maps: int32 (partitions, replicas), positions in the map."""
    number = {name: i for i, name in enumerate(sorted({node.node_id for node in (*before, *after)}))}
    zones = {name: i for i, name in enumerate(sorted({node.zone for node in (*before, *after)}))}
    hosts = {name: i for i, name in enumerate(sorted({_host(node) for node in (*before, *after)}))}
    described = [
        [
            {
                "id": number[node.node_id],
                "zone": zones[node.zone],
                "host": f"10.0.{hosts[_host(node)] // 250}.{hosts[_host(node)] % 250 + 1}",
                "name": node.node_id,
                "weight": node.weight,
            }
            for node in nodes
        ]
        for nodes in (before, after)
    ]
    told = json.dumps([PART_POWER, replicas, *described])
    printed = subprocess.run([python, "-c", SWIFT_SCRIPT], input=told.encode(), check=True, capture_output=True).stdout
    tables = []
    for nodes, rows in zip((before, after), json.loads(printed), strict=True):
        position = np.full(len(number), -1, dtype=np.int32)
        position[[number[node.node_id] for node in nodes]] = np.arange(len(nodes), dtype=np.int32)
        tables.append(position[np.array(rows).T])
    return tables


def _host(node: NodeDescriptor) -> str:
    return f"{node.zone}.{node.rack}.{node.host}"


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
