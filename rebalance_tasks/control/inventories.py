"""Where an inventory comes from when not from the nodes themselves: a file, or a host's own catalogue.

``[fleet] inventory`` names it: ``nodes`` (the default) lists every node, a path ending in .parquet, .arrow or .csv reads a
file anew at each check (`control.surveying.streams`), ``provider:NAME`` calls what an installed package offers (`control.providers`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol

import pyarrow as pa

from rebalance_tasks.control.providers import PROVIDER_PREFIX, load_provider
from rebalance_tasks.core.errors import ConfigurationError, InvalidInventory
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.settings.model import INVENTORY_FILES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pyarrow.csv import ConvertOptions

    from rebalance_tasks.core.models import NodeDescriptor

#: The word for "list the nodes".
FROM_NODES: Final = "nodes"
_PARQUET: Final = {".parquet", ".pq"}
_ARROW: Final = {".arrow", ".feather", ".ipc"}
_CSV: Final = {".csv"}


class Provider(Protocol):
    """What an entry point for ``[fleet] inventory`` names."""

    def __call__(self, nodes: Sequence[NodeDescriptor], /) -> pa.Table | pa.RecordBatchReader:
        """Return every object on these nodes, with the columns of `Inventory.from_arrow`: as a table, or as a stream."""
        ...


def provided(source: str, nodes: Sequence[NodeDescriptor]) -> pa.Table | pa.RecordBatchReader | None:
    """Ask the provider that a configured source names; None when it names none.

    Args:
        source: a path, or ``provider:`` and a name.
        nodes: the fleet.

    Raises:
        ConfigurationError: no such provider is installed, or it cannot be loaded or does not answer.
    """
    if not source.startswith(PROVIDER_PREFIX):
        return None
    provider: Provider = load_provider(source, setting="[fleet] inventory")
    name = source.removeprefix(PROVIDER_PREFIX)
    try:
        answer = provider(nodes)
    except Exception as exc:
        msg = f"[fleet] inventory: provider {name!r} failed: {type(exc).__name__}: {exc}"
        raise ConfigurationError(msg) from exc
    if not isinstance(answer, pa.Table | pa.RecordBatchReader):
        msg = (
            f"[fleet] inventory: provider {name!r} returned {type(answer).__name__}, "
            "not a pyarrow.Table or RecordBatchReader"
        )
        raise ConfigurationError(msg)
    return answer


def kind_of(path: Path) -> Literal["parquet", "arrow", "csv"]:
    """Return what an inventory file is, by its ending. Raises: InvalidInventory."""
    suffix = path.suffix.lower()
    if suffix in _PARQUET:
        return "parquet"
    if suffix in _ARROW:
        return "arrow"
    if suffix in _CSV:
        return "csv"
    known = ", ".join(sorted(INVENTORY_FILES))
    msg = f"{path}: an inventory file ends in {known}"
    raise InvalidInventory(msg)


def csv_options() -> ConvertOptions:
    """How a CSV file is read: keys and node ids stay text, also where they look like numbers."""
    from pyarrow import csv  # noqa: PLC0415

    text = {"object_key": pa.large_string(), "node_id": pa.string()}
    return csv.ConvertOptions(column_types=text, strings_can_be_null=False)


def read_inventory(path: Path) -> Inventory:
    """Read an inventory file by its ending: Parquet, Arrow (IPC file or Feather) or CSV.

    Raises:
        InvalidInventory: the ending is not known, the file cannot be read, or a row is wrong.
    """
    kind = kind_of(path)
    try:
        if kind == "parquet":
            from pyarrow import parquet  # noqa: PLC0415

            return Inventory.from_arrow(parquet.read_table(path))
        if kind == "arrow":
            from pyarrow import feather  # noqa: PLC0415

            return Inventory.from_arrow(feather.read_table(path))
        from pyarrow import csv  # noqa: PLC0415

        return Inventory.from_arrow(csv.read_csv(path, convert_options=csv_options()))
    except (OSError, pa.ArrowInvalid) as exc:
        msg = f"{path}: cannot be read as {kind}: {exc}"
        raise InvalidInventory(msg) from exc
