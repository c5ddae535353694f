"""Objects whose names a node cannot tell apart, and what becomes of them: a job onto a node where ``a/two`` and ``a/TWO`` are one name.

``python -m tests.support.folding`` is run in a mount namespace of its own, over the fleet that ``REBALANCE_CONFIG`` names: it mounts such
a file system at node n2, carries the job, and prints what came of it as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from rebalance_tasks.control import cleanup as cleanups
from tests.support.checker import record, violations
from tests.support.engine import Engine, moves_between
from tests.support.fleets import made_up
from tests.support.hooks import DAY_MS

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Twins differ in nothing but the case of their names: bytes, size and time are the same.
TWIN: Final = made_up("twin", 4_000)
#: What is moved, in that order, and what becomes of it.
MOVED: Final = {
    "plain": "",
    "a/two": "target_exists",  # a/TWO is there
    "b/one": "",
    "B/two": "target_exists",  # its folder is b by then
    "c/twin": "",
    "c/TWIN": "target_exists",
    "d/old": "target_exists",  # its folder is D, from before
}
FILES: Final = {key: TWIN if key.casefold() == "c/twin" else made_up(key, 2_000 + len(key)) for key in MOVED}
RESIDENT: Final = {"a/TWO": made_up("a/TWO", 70), "D/resident": made_up("D/resident", 71)}
#: On the one that is mounted, which lists all names in small letters: its D is d for everybody, and nothing is at a/two.
ON_NTFS: Final = {**MOVED, "a/two": "", "B/two": "invalid_key", "c/TWIN": "invalid_key", "d/old": ""}
IMAGE_BYTES: Final = 16 << 20


def write(root: Path, files: Mapping[str, bytes]) -> None:
    """Write objects, all at one time."""
    for key, content in files.items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (10**9, 10**9))


def carried(roots: Mapping[str, Path]) -> dict[str, Any]:
    """Carry the job from n1 to n2, clean up, and look what came of it."""
    written = record(roots)
    engine = Engine()
    engine.start(moves_between("n1", "n2", {key: len(content) for key, content in FILES.items()}))
    job = engine.finish()
    with mock.patch.object(cleanups, "ORPHAN_AGE", timedelta(0)):
        for _ in range(2):
            engine.cleanup(later_ms=DAY_MS)
    causes = {key: engine.outcome(index) for index, key in enumerate(MOVED)}
    return {
        "causes": {key: json.loads(told)["cause"] if told else "" for key, told in causes.items()},
        "problems": violations(roots, written, job, trash=True),
    }


# -- a file system of this machine ----------------------------------------------------------------------------------------
def folding_file_system() -> bool:
    """Whether this machine can mount one: NTFS in user space, which looks names up as Windows does."""
    return all(map(shutil.which, ("mkntfs", "lowntfs-3g", "umount"))) and Path("/dev/fuse").exists()


def main() -> None:
    """Mount it, carry the job, and let go of it."""
    roots = {name: Path(os.environ["FOLDING_ROOTS"]) / name for name in ("n1", "n2")}
    image = roots["n2"].with_name("image")
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkntfs", "--quick", "--force", "--quiet", str(image)], check=True, capture_output=True)
    subprocess.run(["lowntfs-3g", "-o", "ignore_case", str(image), str(roots["n2"])], check=True)
    try:
        write(roots["n2"], {key: content for key, content in RESIDENT.items() if key.lower() not in FILES})
        print(json.dumps(carried(roots)))  # noqa: T201  what its caller reads
    finally:
        subprocess.run(["umount", "--lazy", str(roots["n2"])], check=True)  # the engine has its descriptors


if __name__ == "__main__":
    main()
