"""A fleet as it was at one moment, in one Parquet file: its objects as rows, its nodes beside them. `rebalance simulate` writes and plays it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter, ValidationError

from rebalance_tasks.control.inventories import kind_of
from rebalance_tasks.core.errors import InvalidArgument, InvalidInventory
from rebalance_tasks.core.models import NodeDescriptor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rebalance_tasks.core.inventory import Inventory

#: Key of the file's metadata under which the nodes stand.
_NODES: Final = b"rebalance.nodes"
_MANY: Final = TypeAdapter(tuple[NodeDescriptor, ...])


def write_recording(path: Path, nodes: Sequence[NodeDescriptor], inventory: Inventory) -> None:
    """Write a fleet to a file that others may see: what a node's driver takes is left out. Raises: InvalidArgument."""
    from pyarrow import parquet  # noqa: PLC0415

    if kind_of(path) != "parquet":
        msg = f"--record {path}: a recording is a Parquet file; let its name end in .parquet"
        raise InvalidArgument(msg)
    shown = tuple(node.model_copy(update={"storage_options": {}}) for node in nodes)
    table = inventory.to_arrow().replace_schema_metadata({_NODES: _MANY.dump_json(shown)})
    try:
        parquet.write_table(table, path, compression="zstd")
    except OSError as exc:
        msg = f"--record {path}: cannot be written: {exc.strerror or exc}"
        raise InvalidArgument(msg) from exc


def recorded_nodes(path: Path) -> tuple[NodeDescriptor, ...]:
    """Return the nodes of a recording; none where a file is a plain inventory. Raises: InvalidInventory."""
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    if kind_of(path) != "parquet":
        return ()
    try:
        raw = (parquet.read_schema(path).metadata or {}).get(_NODES)
    except (OSError, pa.ArrowInvalid):
        return ()  # whoever reads its objects says what is wrong with it
    try:
        return () if raw is None else _MANY.validate_json(raw)
    except ValidationError as exc:
        msg = f"{path}: cannot be read as a recording: {exc}"
        raise InvalidInventory(msg) from exc
