"""The listings of a survey that one process makes: as columns in memory while they fit, else in one Parquet file.

nodes, side by side ─▶ **Gathering** ─▶ all rows, or a file that is read back a batch at a time (`control.surveying.streams`)

So memory follows the nodes that are listed at one moment, not the fleet. The file lives as long as the survey; what a kill leaves of it,
`SurveyMemory.tidy` removes.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import pyarrow as pa
from pyarrow import parquet

from rebalance_tasks.control.surveying.memory import SurveyMemory, spill_folder
from rebalance_tasks.control.surveying.streams import IN_MEMORY_ROWS, spill_file
from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.inventory_columns import MOMENT

if TYPE_CHECKING:
    from pathlib import Path

    from rebalance_tasks.drivers.remembered import Remembered
    from rebalance_tasks.settings import Settings

_SCHEMA = pa.schema(
    {"object_key": pa.large_string(), "size_bytes": pa.int64(), "node_id": pa.string(), "mtime_ns": pa.int64()}
)
_ACCESS = pa.field("last_access_utc", MOMENT)


class Gathering:
    """Takes the listing of each node once, from any thread."""

    def __init__(self, settings: Settings, *, whole: bool) -> None:
        """Take nothing yet.

        Args:
            settings: they say where the file goes (`survey_memory.spill_folder`).
            whole: keep every row in memory, however many there are.
        """
        self._settings, self._whole = settings, whole
        self._schema = _SCHEMA.append(_ACCESS) if settings.gravity.wants_access_times else _SCHEMA
        self._held: dict[str, Remembered] = {}
        self._rows = 0
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._writer: parquet.ParquetWriter | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the file."""
        self._stack.close()

    def take(self, node_id: str, found: Remembered) -> None:
        """Take what lies on a node. Raises: ConfigurationError: it does not fit, and cannot be written."""
        with self._lock:
            self._held[node_id] = found
            self._rows += len(found.keys)
            if self._rows > IN_MEMORY_ROWS and not self._whole:
                self._spill()

    def rows(self) -> Inventory | Path:
        """Return all rows, or the Parquet file that holds them. Raises: InvalidInventory."""
        if self._path is None:
            return Inventory.from_listings({name: found.columns for name, found in self._held.items()})
        if self._writer is not None:
            self._writer.close()
        return self._path

    def _spill(self) -> None:
        try:
            if self._writer is None:
                SurveyMemory.of(self._settings).tidy(now_ns=time.time_ns())
                self._path = self._stack.enter_context(spill_file(spill_folder(self._settings)))
                writer = parquet.ParquetWriter(self._path, self._schema, compression="zstd")
                self._writer = self._stack.enter_context(writer)
            for node_id, found in self._held.items():
                ids = pa.repeat(pa.scalar(node_id, pa.string()), len(found.keys))
                columns = [found.keys, found.size_bytes, ids, found.mtime_ns, found.columns.last_access()]
                self._writer.write_table(pa.table(columns[: len(self._schema)], schema=self._schema))
        except OSError as exc:
            msg = (
                f"survey_dir: the fleet holds more than {IN_MEMORY_ROWS:,} objects, and their list cannot be written: {exc}; "
                "name a directory with room"
            )
            raise ConfigurationError(msg) from exc
        self._held.clear()
