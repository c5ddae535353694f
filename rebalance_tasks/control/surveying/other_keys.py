"""Keys of a node that are no candidates: their hashes, in Redis while they are few, else in a file of the host that listed them.

listing ─▶ **HashFiles.keep** ─▶ a node's share of Redis, or a Parquet file ─▶ `control.surveying.question` asks which candidates' keys are in it

An object that another node holds as well is never planned, so a check must be able to look among *all* keys of a fleet; eight bytes of each are 8 GB for
10⁹. Nothing depends on a file: one that is missing, damaged or of another listing means that the node is listed once more.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import xxhash
from pyarrow import parquet

from rebalance_tasks.control.surveying.memory import require_private
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from rebalance_tasks.core.keeping.sought import Sought

log = get_logger(__name__)

#: Hashes of a whole fleet that Redis holds while a check runs, and until the findings expire: 64 MB.
FLEET_HASHES: Final = 8_000_000
#: Hashes read at a time: 8 MB.
_GROUP: Final = 1 << 20
_MARK: Final = b"mark"


def share_of(nodes: int, parts: int) -> int:
    """Return how many hashes of one part of a node, of so many nodes, go to Redis."""
    return FLEET_HASHES // max(1, nodes) // parts


@dataclass(frozen=True, slots=True)
class HashFiles:
    """Files of hashes of one fleet on this host.

    Attributes:
        folder: private to this user (`survey_memory.require_private`); what lies in it for long, `SurveyMemory.tidy` removes.
    """

    folder: Path

    def keep(self, name: str, hashes: NDArray[np.uint64]) -> str:
        """Keep the hashes of a node, or of a part of one, whatever an earlier listing left under that name.

        Args:
            name: of the node or part (`control.surveying.parts`).
            hashes: uint64 (n,), rising.

        Returns:
            What the file is known by. Where it could not be written, this is a mark that no file has.
        """
        mark = xxhash.xxh3_64_hexdigest(np.ascontiguousarray(hashes).data)
        target = self._path(name)
        aside = target.with_suffix(f".{os.getpid()}.{os.urandom(4).hex()}")
        try:
            require_private(self.folder)
            schema = pa.schema([("hash", pa.uint64())], metadata={_MARK: mark.encode()})
            # Rising numbers are close to their neighbours: a third less than eight bytes each.
            with parquet.ParquetWriter(
                aside, schema, use_dictionary=False, column_encoding={"hash": "DELTA_BINARY_PACKED"}
            ) as file:
                file.write_table(pa.table([hashes], schema=schema), row_group_size=_GROUP)
            aside.replace(target)
        except (OSError, pa.ArrowException) as exc:
            # Not worth failing for: the node will be listed once more.
            log.warning("survey.hashes_unwritten", node=name, error=str(exc))
            with suppress(OSError):
                aside.unlink()
        return mark

    def among(self, name: str, mark: str, sought: Sought) -> NDArray[np.uint64] | None:
        """Return those of the hashes of a node or part that are looked for; None where this host does not have that file."""
        try:
            require_private(self.folder)
            found = [hashes[sought.among(hashes)] for hashes in _read(self._path(name), mark)]
        except (OSError, pa.ArrowException, KeyError, ValueError) as exc:
            if not isinstance(exc, FileNotFoundError):
                log.warning("survey.hashes_unread", node=name, error=str(exc))
            return None
        return np.concatenate([np.empty(0, np.uint64), *found])

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.others.parquet"


def _read(path: Path, mark: str) -> Iterator[NDArray[np.uint64]]:
    """Yield the hashes of one listing, some at a time. Raises: KeyError: it is another listing's."""
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        if (file.schema_arrow.metadata or {}).get(_MARK) != mark.encode():
            raise KeyError(mark)
        for batch in file.iter_batches(batch_size=_GROUP, columns=["hash"]):
            yield batch.column(0).to_numpy(zero_copy_only=False)
