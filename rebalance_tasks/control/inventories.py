"""Where an inventory comes from when not from the nodes themselves: a file, or a host's own catalogue.

``[fleet] inventory`` names it: ``nodes`` (the default) lists every node, a path ending in .parquet, .arrow or .csv reads a
file anew at each check, ``provider:NAME`` calls what an installed package offers (`control.providers`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import pyarrow as pa

from rebalance_tasks.control.providers import PROVIDER_PREFIX, load_provider
from rebalance_tasks.core.errors import ConfigurationError, InvalidInventory
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.settings_model import INVENTORY_FILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebalance_tasks.core.models import NodeDescriptor

#: The word for "list the nodes".
FROM_NODES: Final = "nodes"
_PARQUET: Final = {".parquet", ".pq"}
_ARROW: Final = {".arrow", ".feather", ".ipc"}
_CSV: Final = {".csv"}


class Provider(Protocol):
    """What an entry point for ``[fleet] inventory`` names."""

    def __call__(self, nodes: Sequence[NodeDescriptor], /) -> pa.Table:
        """Return every object on these nodes, with the columns of `Inventory.from_arrow`."""
        ...


def inventory_from(source: str, nodes: Sequence[NodeDescriptor]) -> Inventory:
    """Read the inventory from a configured source.

    Args:
        source: a path, or ``provider:`` and a name.
        nodes: the fleet.

    Raises:
        ConfigurationError: no such provider is installed, or it cannot be loaded or does not answer.
        InvalidInventory: the file cannot be read, or a row is wrong.
    """
    if not source.startswith(PROVIDER_PREFIX):
        return read_inventory(Path(source))
    provider: Provider = load_provider(source, setting="[fleet] inventory")
    name = source.removeprefix(PROVIDER_PREFIX)
    try:
        table = provider(nodes)
    except Exception as exc:
        msg = f"[fleet] inventory: provider {name!r} failed: {type(exc).__name__}: {exc}"
        raise ConfigurationError(msg) from exc
    if not isinstance(table, pa.Table):
        msg = f"[fleet] inventory: provider {name!r} returned {type(table).__name__}, not a pyarrow.Table"
        raise ConfigurationError(msg)
    return Inventory.from_arrow(table)


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
    known = ", ".join(sorted(INVENTORY_FILES))
    msg = f"{path}: an inventory file ends in {known}"
    raise InvalidInventory(msg)
