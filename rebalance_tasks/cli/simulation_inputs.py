"""What a simulation is played with: the configured fleet and an inventory file, the fleet as it is now, or a made-up one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from rebalance_tasks.core.errors import ConfigurationError, InvalidInventory
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.simulation_fleet import synthetic_fleet
from rebalance_tasks.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal
    from pathlib import Path

    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions

_PARQUET: Final = {".parquet", ".pq"}
_ARROW: Final = {".arrow", ".feather", ".ipc"}
_CSV: Final = {".csv"}


@dataclass(frozen=True, slots=True)
class Given:
    """A fleet, its objects and its rules."""

    nodes: list[NodeDescriptor]
    inventory: Inventory
    options: RebalancerOptions
    prices: Mapping[tuple[str, str], Decimal]


def read_inventory(path: Path) -> Inventory:
    """Read an inventory file by its ending: Parquet, Arrow (IPC file or Feather) or CSV.

    Raises:
        InvalidInventory: the ending is not known, the file cannot be read, or a row is wrong.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in _PARQUET:
            from pyarrow import parquet  # noqa: PLC0415

            return Inventory.from_arrow(parquet.read_table(path))
        if suffix in _ARROW:
            from pyarrow import feather  # noqa: PLC0415

            return Inventory.from_arrow(feather.read_table(path))
        if suffix in _CSV:
            from pyarrow import csv  # noqa: PLC0415

            # Keys and node ids stay text, also where they look like numbers.
            text = {"object_key": pa.large_string(), "node_id": pa.string()}
            return Inventory.from_arrow(
                csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=text, strings_can_be_null=False))
            )
    except (OSError, pa.ArrowInvalid) as exc:
        msg = f"{path}: cannot be read as {suffix.removeprefix('.')}: {exc}"
        raise InvalidInventory(msg) from exc
    known = ", ".join(sorted(_PARQUET | _ARROW | _CSV))
    msg = f"{path}: an inventory file ends in {known}"
    raise InvalidInventory(msg)


def from_file(path: Path) -> Given:
    """The configured fleet, with the objects that a file lists. Raises: ConfigurationError, InvalidInventory."""
    settings = load_settings()
    if not settings.nodes:
        msg = "no nodes are configured; name a rebalance.toml with --config, or try --synthetic"
        raise ConfigurationError(msg)
    inventory = read_inventory(path)
    unstated = [node.node_id for node in settings.nodes if not node.capacity_bytes]
    if unstated:
        msg = f"a simulation looks at no disk: state capacity_bytes for {', '.join(unstated)} in rebalance.toml"
        raise ConfigurationError(msg)
    prices = {(price.from_region, price.to_region): price.per_gb for price in settings.prices}
    return Given(list(settings.nodes), inventory, settings.options, prices)


def made_up(*, nodes: int, objects: int, fill: float, spread: float, mean_bytes: int, seed: int) -> Given:
    """A made-up fleet under the configured options (the defaults, where there is no configuration)."""
    settings = load_settings()
    made, inventory = synthetic_fleet(
        nodes=nodes, objects=objects, fill=fill, spread=spread, mean_bytes=mean_bytes, seed=seed
    )
    return Given(made, inventory, settings.options, {})
