"""What the surveys of this host saw, one file a node, so that the next one reads only what has changed.

Nothing depends on it: a file that is missing, damaged or another fleet's means that the node is listed in full. It lies in a
directory that nobody but this user may write to, since it says what is on the nodes.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pyarrow as pa

from rebalance_tasks.control.surveying.parts import part_of
from rebalance_tasks.core.inventory_columns import text
from rebalance_tasks.drivers.remembered import Remembered
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from datetime import timedelta

    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.drivers.key_ranges import KeyRange
    from rebalance_tasks.drivers.node_parts import Parted
    from rebalance_tasks.drivers.remembered import Remembers
    from rebalance_tasks.settings import Settings

log = get_logger(__name__)

#: Grows when the meaning of a file changes; older ones are not read.
_VERSION: Final = 2
_PRIVATE: Final = 0o700
#: Nobody takes so long to write a memory.
_OLD_S: Final = 3_600
#: Columns halve on disk, and unpack faster than a disk reads.
_PACKED: Final = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclass(frozen=True, slots=True)
class SurveyMemory:
    """The memory of one fleet on this host.

    Attributes:
        folder: None keeps nothing.
        keep: how long a memory may be brought up to date before everything is listed anew.
        spills: where what fits neither into memory nor into Redis is put, `spill_folder`; it is tidied as well.
        access_times: whether they are wanted; since they show in no folder, everything is listed each time.
    """

    folder: Path | None
    keep: timedelta
    spills: Path | None = None
    access_times: bool = False

    @classmethod
    def of(cls, settings: Settings) -> SurveyMemory:
        """Return the memory that the settings ask for."""
        keep, access_times = settings.options.full_survey_interval, settings.gravity.wants_access_times
        folder = memory_folder(settings) if keep and not access_times else None
        return cls(folder, keep, spill_folder(settings), access_times)

    def serves(self, driver: Driver) -> bool:
        """Whether a node with this driver may be listed from what is remembered."""
        return self.folder is not None and hasattr(driver, "list_changed")

    def list_objects(
        self,
        driver: Driver,
        node: NodeDescriptor,
        *,
        now_ns: int,
        require_identity: bool,
        name: str = "",
        most: int | None = None,
        within: KeyRange | None = None,
    ) -> Remembered:
        """List a node: only what has changed where its driver can tell, else everything.

        Args:
            driver: of the node.
            node: its patterns and its place must be those of the memory.
            now_ns: nanoseconds since 1970.
            require_identity: as `Driver.list_objects`.
            name: of a part of it (`control.surveying.parts`); default the whole node.
            most: as `Remembers.list_changed` and `Parted.list_part`.
            within: the range of keys that ``name`` means, if it means one.

        Raises:
            TooManyObjects: there are more, and the node can be listed in parts.
            NodeMissing.
        """
        name = name or node.node_id
        part = part_of(name)
        if self.access_times or not hasattr(driver, "list_changed"):
            parted = cast("Parted", driver)
            listing = parted.list_part(within or part, require_identity=require_identity, most=most)
            rows = text(listing.keys), listing.size_bytes, listing.mtime_ns
            return Remembered(rows, listing.left_out, atime_ns=listing.atime_ns if self.access_times else None)
        before, listed_ns = self._load(node, name, now_ns=now_ns)
        found = cast("Remembers", driver).list_changed(before, require_identity=require_identity, part=part, most=most)
        if found is not before:
            self._save(node, name, found, listed_ns=now_ns if before is None else listed_ns)
        return found

    def tidy(self, *, now_ns: int) -> None:
        """Remove what nobody reads any more: what a writer left when it died, memories and spills of nodes and parts that are no more."""
        old_ns = now_ns - int(max(self.keep.total_seconds(), _OLD_S) * 10**9)
        for folder in {self.folder, self.spills} - {None}:
            with suppress(OSError):
                for path in cast("Path", folder).iterdir():
                    if path.lstat().st_mtime_ns < old_ns:
                        path.unlink()

    def _about(self, node: NodeDescriptor, name: str) -> dict[str, Any]:
        place = {"name": name, "url": node.url}
        return {"version": _VERSION, **place, "include": list(node.include), "exclude": list(node.exclude)}

    def _load(self, node: NodeDescriptor, name: str, *, now_ns: int) -> tuple[Remembered | None, int]:
        """Return what is remembered and when all of it was listed; nothing when that is too long ago."""
        if self.folder is None:
            return None, now_ns
        try:
            require_private(self.folder)
            # The map outlives a newer file of that name, and its columns are unpacked when they are wanted.
            file = pa.ipc.open_file(pa.memory_map(str(self.folder / f"{name}.arrow")))
            found, about = Remembered.read(file.schema, file.read_all)
            listed_ns = int(about.pop("listed_ns"))
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as exc:
            if not isinstance(exc, FileNotFoundError):
                log.warning("survey.memory_unread", node=name, error=str(exc))
            return None, now_ns
        young = 0 <= now_ns - listed_ns < self.keep.total_seconds() * 10**9
        return (found, listed_ns) if young and about == self._about(node, name) else (None, now_ns)

    def _save(self, node: NodeDescriptor, name: str, found: Remembered, *, listed_ns: int) -> None:
        if self.folder is None:
            return
        target = self.folder / f"{name}.arrow"
        aside = target.with_suffix(f".{os.getpid()}.{os.urandom(4).hex()}")
        try:
            require_private(self.folder)
            table = found.to_arrow({**self._about(node, name), "listed_ns": listed_ns})
            with pa.ipc.new_file(str(aside), table.schema, options=_PACKED) as file:
                file.write_table(table)
            aside.replace(target)
        except OSError as exc:
            # Not worth failing for: the node will be listed in full.
            log.warning("survey.memory_unwritten", node=name, error=str(exc))
            with suppress(OSError):
                aside.unlink()


def memory_folder(settings: Settings) -> Path | None:
    """Return the directory in which this host may keep what it saw of a fleet, None for none."""
    if settings.survey_dir == "none":
        return None
    if settings.survey_dir != "auto":
        return Path(settings.survey_dir, settings.fleet)
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    return Path(cache, "rebalance-tasks", settings.fleet)


def spill_folder(settings: Settings) -> Path:
    """Return the directory in which this host puts what does not fit elsewhere: where it keeps what it saw, else one for temporary files."""
    folder = memory_folder(settings)
    return folder or Path(tempfile.gettempdir(), f"rebalance-tasks-{os.geteuid()}-{settings.fleet}")


def require_private(folder: Path) -> None:
    """Make the folder, or refuse one that others may write to. Raises: OSError."""
    folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        msg = f"{folder} belongs to another user or is writable to others; correct its mode, or set survey_dir"
        raise PermissionError(msg)
