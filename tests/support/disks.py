"""Real disks that fail in the middle of a job: full, read-only of a sudden, or unmounted under open descriptors.

``python -m tests.support.disks CASE`` is run in a mount namespace of its own, over the fleet that ``REBALANCE_CONFIG`` names. It
mounts a disk at node n2, carries a job from n1 while that disk fails, repairs it, cleans up, and prints what came of it as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import pytest

from rebalance_tasks.control import cleanup as cleanups
from rebalance_tasks.migration.batch import Batch
from tests.support.checker import look, object_violations, record, violations
from tests.support.engine import Engine, moves_between
from tests.support.hooks import DAY_MS, SIZES, before

if TYPE_CHECKING:
    from collections.abc import Callable

OBJECTS: Final = {**SIZES, "b/three": 60_000}
DISK_BYTES: Final = 256 << 10
#: What is left of it when a stranger has filled it up: enough for all but the largest object, and for a manifest.
LEFT_BYTES: Final = 40 << 10


def run(*command: str) -> None:
    subprocess.run(command, check=True)


class Disk:
    """A file system of its own, mounted at a node's root by a bind, so that it outlives its mount."""

    def __init__(self, root: Path, place: Path) -> None:
        self.root, self.place = root, place
        place.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(place))
        self.mount()

    def mount(self) -> None:
        run("mount", "--bind", str(self.place), str(self.root))

    # -- how it fails ---------------------------------------------------------------------------------------------
    def fill(self) -> None:
        """Somebody writes until there is next to no room left."""
        (self.place / ".rebalance/full").write_bytes(bytes(DISK_BYTES - LEFT_BYTES))

    def make_room(self) -> None:
        (self.place / ".rebalance/full").unlink()

    def lock(self) -> None:
        """As a kernel does that has met an error of the disk."""
        run("mount", "-o", "remount,ro,bind", str(self.root))

    def unlock(self) -> None:
        run("mount", "-o", "remount,rw,bind", str(self.root))

    def leave(self) -> None:
        """Unmounted although it is in use: whoever holds a descriptor still reaches it, nobody else does."""
        run("umount", "--lazy", str(self.root))


#: case -> before which step of the batch the disk fails, how, and how that is mended
CASES: Final[dict[str, tuple[str, Callable[[Disk], None], Callable[[Disk], None]]]] = {
    "full while copying": ("_stage", Disk.fill, Disk.make_room),
    "read-only before publishing": ("_publish", Disk.lock, Disk.unlock),
    "unmounted before publishing": ("_publish", Disk.leave, Disk.mount),
    "unmounted before the commit": ("_commit", Disk.leave, Disk.mount),
    "unmounted before freeing": ("_free_all", Disk.leave, Disk.mount),
}


def carry(case: str) -> dict[str, Any]:
    """Play one case."""
    step, fail, mend = CASES[case]
    engine = Engine()
    roots = {node.node_id: Path(node.url.removeprefix("file://")) for node in engine.context.settings.nodes}
    disk = Disk(roots["n2"], roots["n2"].with_name("disk"))
    written = record(roots)
    engine.start(moves_between("n1", "n2", OBJECTS))
    with pytest.MonkeyPatch.context() as patch:
        before(patch, Batch, step, lambda *_: fail(disk))
        job = engine.finish()
    half_way = object_violations(look(roots), written) if fail is not Disk.leave else []
    mend(disk)
    engine.context.driver("n2").close()
    with mock.patch.object(cleanups, "ORPHAN_AGE", timedelta(0)):
        for _ in range(3):
            engine.cleanup(later_ms=DAY_MS)
    return {
        "status": job.status,
        "completed": job.completed_moves,
        "failures": dict(job.failures),
        "problems": violations(roots, written, job, trash=True),
        "half_way": half_way,
    }


if __name__ == "__main__":
    print(json.dumps(carry(sys.argv[1])))  # noqa: T201  what its caller reads
