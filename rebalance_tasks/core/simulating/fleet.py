"""A made-up fleet for trying things: nodes over three zones, lognormal objects, a spread as wide as asked for."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import numpy as np
import pyarrow as pa

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import NodeDescriptor

_ZONES: Final = ("a", "b", "c")
#: Width of the lognormal sizes: a few objects hold most of the bytes, as in most fleets.
_SIGMA: Final = 2.0
#: Objects of a directory, so that keys look like keys.
_PER_FOLDER: Final = 1_000


def synthetic_fleet(
    *,
    nodes: int,
    objects: int,
    fill: float = 0.5,
    spread: float = 0.5,
    mean_bytes: int = 1 << 20,
    egress_cost_per_gb: Decimal = Decimal(0),
    seed: int = 1,
) -> tuple[list[NodeDescriptor], Inventory]:
    """Make a fleet.

    Args:
        nodes: how many, all of one capacity, over three zones.
        objects: how many.
        fill: mean utilisation, in (0, 1).
        spread: between the fullest and the emptiest node, as far as whole objects allow.
        mean_bytes: of an object.
        egress_cost_per_gb: of each node.
        seed: of sizes, places and gravity.

    Raises:
        InvalidArgument: the fullest node would be over its capacity, or the emptiest below nothing.
    """
    if nodes < 1 or objects < 0 or mean_bytes < 1 or not 0 < fill < 1 or not 0 <= spread / 2 <= min(fill, 1 - fill):
        msg = (
            f"synthetic fleet: nodes {nodes}, objects {objects}, fill {fill}, spread {spread}: at least one node, and "
            "fill ± spread/2 within 0 and 1"
        )
        raise InvalidArgument(msg)
    rng = np.random.Generator(np.random.PCG64(seed))
    raw = rng.lognormal(0.0, _SIGMA, objects)
    sizes = np.maximum(1, raw * (mean_bytes * objects / raw.sum())).astype(np.int64) if objects else np.empty(0, int)
    shares = np.linspace(fill - spread / 2, fill + spread / 2, nodes) if nodes > 1 else np.array([fill])
    # In a random order, each object to the node whose part of the line it falls on.
    order = rng.permutation(objects)
    ends = np.cumsum(shares) / shares.sum() * sizes.sum()
    place = np.empty(objects, np.int32)
    place[order] = np.minimum(np.searchsorted(ends, np.cumsum(sizes[order]) - sizes[order] / 2), nodes - 1)
    capacity = max(1, round(int(sizes.sum()) / (fill * nodes)))
    names = [f"n{number:0{len(str(nodes))}}" for number in range(1, nodes + 1)]
    described = [
        NodeDescriptor(
            node_id=name,
            capacity_bytes=capacity,
            zone=_ZONES[at % len(_ZONES)],
            host=name,
            egress_cost_per_gb=egress_cost_per_gb,
        )
        for at, name in enumerate(names)
    ]
    table = pa.table(
        {
            "object_key": pa.array([f"f{at // _PER_FOLDER:05}/o{at:08}" for at in range(objects)], pa.large_string()),
            "size_bytes": sizes,
            "node_id": pa.DictionaryArray.from_arrays(pa.array(place), pa.array(names, type=pa.string())),
            "gravity": rng.beta(1.0, 3.0, objects),
        }
    )
    return described, Inventory.from_arrow(table)
