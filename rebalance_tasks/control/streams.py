"""An inventory from a file or a provider: read whole where it fits into memory, else streamed twice and kept as candidates.

file or provider ─▶ **found_in** ─▶ inventory (all rows, or candidates with exact sums of the rest) ─▶ planner

What a provider streams can be read but once, so it is spilled to a Parquet file first, in the directory of the surveys' memory.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
from pyarrow import dataset

from rebalance_tasks.control.inventories import csv_options, provided, read_inventory
from rebalance_tasks.control.survey_memory import memory_folder, require_private
from rebalance_tasks.core.errors import InvalidInventory
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.keeper import Keeper, Meetings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.settings import Settings

#: More rows are streamed: as columns, and while they are planned, they would take more than 2 GB.
IN_MEMORY_ROWS: Final = 10_000_000
#: Rows of one batch, and batches that are read ahead.
BATCH_ROWS: Final = 1 << 18
_AHEAD: Final = 2
_FORMATS: Final = {".parquet": "parquet", ".pq": "parquet", ".arrow": "ipc", ".feather": "ipc", ".ipc": "ipc"}
_KEY_AND_NODE: Final = ["object_key", "node_id"]


def found_in(
    settings: Settings,
    nodes: Sequence[NodeDescriptor],
    *,
    most: int,
    now: datetime,
    measured: Callable[[Inventory], Inventory],
) -> tuple[Inventory, dict[str, int]]:
    """Read the inventory from the configured source.

    Args:
        settings: whose ``inventory`` names a file or a provider.
        nodes: the fleet.
        most: rows to keep of each node where not all of them fit.
        now: aware; ages are measured from it.
        measured: adds what the fleet's rules and measures say, to all rows or to a batch of them.

    Returns:
        The inventory, and node_id → bytes of all its objects.

    Raises:
        ConfigurationError: no such provider is installed, or it cannot be loaded or does not answer.
        InvalidInventory: a file cannot be read or has changed meanwhile, or a row is wrong.
    """
    with _opened(settings, nodes) as source:
        if isinstance(source, Inventory):
            inventory = measured(source)
            return inventory, inventory.used_bytes()
        keeper = Keeper(nodes, most=most, options=settings.options, now=now)
        for first, rows in _batches(source):
            keeper.add(measured(_checked(rows, first)))
        kept, used = keeper.kept()
        meetings = Meetings(kept)
        for _, rows in _batches(source, columns=_KEY_AND_NODE):
            meetings.look(rows)
        return meetings.apart(), used


@contextmanager
def _opened(settings: Settings, nodes: Sequence[NodeDescriptor]) -> Iterator[Inventory | dataset.Dataset]:
    """Give all rows, where they fit, else what can be read as often as one likes."""
    found = provided(settings.inventory, nodes)
    if found is None:
        path = Path(settings.inventory)
        with _unchanged(path):
            opened = _dataset(path)
            yield opened if _rows(opened, path) > IN_MEMORY_ROWS else read_inventory(path)
    elif isinstance(found, pa.Table):
        yield dataset.dataset(found) if found.num_rows > IN_MEMORY_ROWS else Inventory.from_arrow(found)
    else:
        with _spilled(found, memory_folder(settings)) as path:
            opened = _dataset(path)
            yield opened if _rows(opened, path) > IN_MEMORY_ROWS else read_inventory(path)


def _dataset(path: Path) -> dataset.Dataset:
    kind = _FORMATS.get(path.suffix.lower()) or dataset.CsvFileFormat(convert_options=csv_options())
    try:
        return dataset.dataset(path, format=kind)
    except (OSError, pa.ArrowInvalid) as exc:
        msg = f"{path}: cannot be read as an inventory: {exc}"
        raise InvalidInventory(msg) from exc


def _rows(opened: dataset.Dataset, path: Path) -> int:
    try:
        return int(opened.count_rows())
    except (OSError, pa.ArrowInvalid) as exc:
        msg = f"{path}: cannot be read as an inventory: {exc}"
        raise InvalidInventory(msg) from exc


def _batches(source: dataset.Dataset, columns: list[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
    """Yield batches in order, each with the number of its first row."""
    first = 0
    try:
        for batch in source.to_batches(
            columns=columns, batch_size=BATCH_ROWS, batch_readahead=_AHEAD, fragment_readahead=1, cache_metadata=False
        ):
            if batch.num_rows:
                yield first, pa.Table.from_batches([batch])
                first += batch.num_rows
    except (OSError, pa.ArrowInvalid, KeyError) as exc:
        msg = f"[fleet] inventory: reading stopped after row {first}: {exc}"
        raise InvalidInventory(msg) from exc


def _checked(rows: pa.Table, first: int) -> Inventory:
    try:
        return Inventory.from_arrow(rows)
    except InvalidInventory as exc:
        msg = f"{exc} (counted from row {first} of the whole)"
        raise InvalidInventory(msg) from exc


@contextmanager
def _unchanged(path: Path) -> Iterator[None]:
    """Refuse a file that was written while it was read: two readings of it would be of two inventories."""

    def look() -> list[tuple[str, int, int]]:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return [(str(file), status.st_size, status.st_mtime_ns) for file in files for status in (file.stat(),)]

    try:
        before = look()
        yield
        after = look()
    except OSError as exc:
        msg = f"{path}: cannot be read: {exc}"
        raise InvalidInventory(msg) from exc
    if after != before:
        msg = f"{path}: it has changed while it was read; write it aside and rename it into place"
        raise InvalidInventory(msg)


@contextmanager
def _spilled(stream: pa.RecordBatchReader, folder: Path | None) -> Iterator[Path]:
    """Write a stream to a file that lives as long as the context; what a kill leaves of it, `SurveyMemory.tidy` removes."""
    from pyarrow import parquet  # noqa: PLC0415

    if folder is not None:
        require_private(folder)
    descriptor, name = tempfile.mkstemp(prefix="spill-", suffix=".parquet", dir=folder)
    os.close(descriptor)
    path = Path(name)
    try:
        with parquet.ParquetWriter(path, stream.schema, compression="zstd") as writer:
            for batch in stream:
                writer.write_batch(batch)
        yield path
    finally:
        path.unlink(missing_ok=True)
