"""An inventory from a file or a provider: read whole where it fits into memory, else streamed twice and kept as candidates.

file or provider ─▶ **found_in** ─▶ inventory (all rows, or candidates with exact sums of the rest) ─▶ planner

What a provider streams can be read but once, so it is spilled to a Parquet file first, in the directory of the surveys' memory. So is what one process
lists of nodes that do not fit (`control.surveying.gathering`).
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from rebalance_tasks.control.inventories import csv_options, kind_of, provided, read_inventory
from rebalance_tasks.control.surveying.memory import require_private, spill_folder
from rebalance_tasks.core.errors import InvalidInventory
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.keeping.keeper import Keeper, Meetings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.settings import Settings

#: More rows are streamed: as columns, and while they are planned, they would take more than 2 GB.
IN_MEMORY_ROWS: Final = 10_000_000
#: Rows of one batch.
BATCH_ROWS: Final = 1 << 18
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
        return kept_of(source, Keeper(nodes, most=most, options=settings.options, now=now), measured=measured)


def rows_about(
    settings: Settings,
    nodes: Sequence[NodeDescriptor],
    keys: pa.Array | pa.ChunkedArray,
    *,
    measured: Callable[[Inventory], Inventory],
) -> Inventory:
    """Read from the configured source what it says of some objects, and of the other members of their replica groups.

    Args:
        settings: whose ``inventory`` names a file or a provider.
        nodes: the fleet.
        keys: of the objects; those that the source does not know are no rows.
        measured: adds what the fleet's rules and measures say of these rows.

    Raises:
        As `found_in`.
    """
    with _opened(settings, nodes) as source:

        def parts(groups: Collection[str] = ()) -> list[Inventory]:
            found = (
                [source]
                if isinstance(source, Inventory)
                else (_checked(rows, first) for first, rows in _batches(source))
            )
            return [part.take(np.flatnonzero(_is_about(part, keys, groups))) for part in found]

        found = parts()
        if groups := {group for part in found if part.replica_group is not None for group in part.replica_group.met()}:
            found = parts(groups)
        return measured(Inventory.concat(found))


def _is_about(part: Inventory, keys: pa.Array | pa.ChunkedArray, groups: Collection[str]) -> NDArray[np.bool_]:
    about: NDArray[np.bool_] = pc.is_in(part.keys, value_set=keys).to_numpy(zero_copy_only=False)
    if groups and (column := part.replica_group) is not None:
        codes = [code for code, value in enumerate(column.values) if value in groups]
        about |= np.isin(column.codes, codes)
    return about


def kept_of(
    source: pa.Table | Path, keeper: Keeper, *, measured: Callable[[Inventory], Inventory]
) -> tuple[Inventory, dict[str, int]]:
    """Keep the candidates of a table or a file; see `candidates_of`."""
    return candidates_of(partial(_batches, source), keeper, measured=measured)


def candidates_of(
    read: Callable[[list[str] | None], Iterator[tuple[int, pa.Table]]],
    keeper: Keeper,
    *,
    measured: Callable[[Inventory], Inventory],
) -> tuple[Inventory, dict[str, int]]:
    """Read a list twice, some rows at a time, and keep its candidates.

    Args:
        read: gives all rows, the same each time, or some columns of them, each time with the number of the first.
        keeper: of the fleet, with nothing in it yet.
        measured: as in `found_in`.

    Returns:
        The candidates, and node_id → bytes of all its objects.

    Raises:
        InvalidInventory: a row is wrong.
    """
    for first, rows in read(None):
        keeper.add(measured(_checked(rows, first)))
    kept, used = keeper.kept()
    meetings = Meetings(kept)
    for _, rows in read(_KEY_AND_NODE):
        meetings.look(rows)
    return meetings.apart(), used


@contextmanager
def _opened(settings: Settings, nodes: Sequence[NodeDescriptor]) -> Iterator[Inventory | pa.Table | Path]:
    """Give all rows, where they fit, else what can be read as often as one likes."""
    found = provided(settings.inventory, nodes)
    if found is None:
        path = Path(settings.inventory)
        with _unchanged(path):
            yield path if _rows(path) > IN_MEMORY_ROWS else read_inventory(path)
    elif isinstance(found, pa.Table):
        yield found if found.num_rows > IN_MEMORY_ROWS else Inventory.from_arrow(found)
    else:
        with _spilled(found, spill_folder(settings)) as path:
            yield path if _rows(path) > IN_MEMORY_ROWS else read_inventory(path)


def _rows(path: Path) -> int:
    """Return how many rows there are, up to one more than fit."""
    count = 0
    for _, rows in _batches(path, ["node_id"]):
        count += rows.num_rows
        if count > IN_MEMORY_ROWS:
            break
    return count


def _batches(source: pa.Table | Path, columns: list[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows some at a time, in order, each time with the number of the first."""
    if isinstance(source, pa.Table):
        found = iter(source.select(columns or source.column_names).to_batches(max_chunksize=BATCH_ROWS))
    else:
        files = sorted(source.glob(f"*{source.suffix}")) if source.is_dir() else [source]
        found = chain.from_iterable(_batches_of(file, columns) for file in files)
    first = 0
    try:
        for batch in found:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                part = batch.slice(start, BATCH_ROWS)
                yield first, pa.Table.from_batches([part])
                first += part.num_rows
    except (OSError, pa.ArrowInvalid, KeyError) as exc:
        msg = f"{source if isinstance(source, Path) else '[fleet] inventory'}: cannot be read after row {first}: {exc}"
        raise InvalidInventory(msg) from exc


def _batches_of(file: Path, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    """Read a file by its ending, one batch in memory at a time (`pyarrow.dataset` reads ahead without a bound)."""
    match kind_of(file):
        case "parquet":
            with parquet.ParquetFile(file, pre_buffer=False) as opened:
                yield from opened.iter_batches(batch_size=BATCH_ROWS, columns=columns)
        case "arrow":
            with pa.memory_map(str(file)) as mapped, pa.ipc.open_file(mapped) as opened:
                for number in range(opened.num_record_batches):
                    batch = opened.get_batch(number)
                    yield batch if columns is None else batch.select(columns)
        case _:
            with csv.open_csv(file, convert_options=csv_options()) as opened:
                for batch in opened:
                    yield batch if columns is None else batch.select(columns)


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
def _spilled(stream: pa.RecordBatchReader, folder: Path) -> Iterator[Path]:
    """Write a stream to a file that lives as long as the context."""
    with spill_file(folder) as path:
        with parquet.ParquetWriter(path, stream.schema, compression="zstd") as writer:
            for batch in stream:
                writer.write_batch(batch)
        yield path


@contextmanager
def spill_file(folder: Path) -> Iterator[Path]:
    """Give the path of an empty file that lives as long as the context; what a kill leaves of it, `SurveyMemory.tidy` removes. Raises: OSError."""
    require_private(folder)
    descriptor, name = tempfile.mkstemp(prefix="spill-", suffix=".parquet", dir=folder)
    os.close(descriptor)
    path = Path(name)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
