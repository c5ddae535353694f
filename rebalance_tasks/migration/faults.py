"""Fault points: the named places between two steps at which a test may kill the process or spoil a copy.

In production nothing is registered and `reached` is one dictionary look-up. Tests set ``REBALANCE_FAULTS`` to
``"<step>=kill"`` (SIGKILL itself), ``"<step>=kill:<n>"`` (at the n-th time), ``"<step>=maybe:<n>"`` (one time in n, by
chance) or ``"stage=corrupt"`` (flip a byte of the staged copy); ``*`` is every step. They name a ledger folder in
``REBALANCE_FAULTS_LEDGER`` so that each fault strikes once over all processes; without one it strikes every time. Deaths by
chance are counted in the ledger's file ``strikes`` and end when there is a file ``calm``.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


class Step(StrEnum):
    """The steps that change a node or Redis, in order; each is a fault point right after the step is done.

    Each has exactly one place in the code and a case in the kill matrix (tests/integration/test_kill_matrix.py).
    """

    # -- a slice, and the way of one object
    ACQUIRE = "acquire"
    #: deaths of those that are past their copying are journalled
    RECOGNISE = "recognise"
    #: what a dead worker gave its key is read there once more
    READ_AGAIN = "read_again"
    #: what a dead worker took back and left in the target's trash is gone
    FORGET_COPY = "forget_copy"
    BEGIN = "begin"
    #: a part of a large object is journalled
    PART = "part"
    STAGE = "stage"
    SYNC_STAGED = "sync_staged"
    VERIFY = "verify"
    JOURNAL = "journal"
    PUBLISH = "publish"
    #: the target's server has copied an object to its key
    COPY = "copy"
    SYNC_PUBLISHED = "sync_published"
    MANIFEST = "manifest"
    #: the host's catalogue, where it says where objects are, sends readers to the target; Redis follows
    HOST_FLIP = "host_flip"
    FLIP = "flip"
    #: a writer holds what the host has committed: it is journalled, to be flipped in Redis later
    LATER = "later"
    FREE = "free"
    #: the source changed after all: the flip is taken back …
    RETRACT = "retract"
    #: … and the host's catalogue sends readers to the source again
    HOST_BACK = "host_back"
    #: the host says what it has not committed, and will not do so late
    HOST_ASKED = "host_asked"
    #: … and the copy on the target is in its trash …
    UNPUBLISH = "unpublish"
    #: … and gone from there
    REMOVE = "remove"
    #: a copy aside is thrown away
    DISCARD = "discard"
    #: a move that is to be tried again is journalled
    AGAIN = "again"
    #: what a pause or the deadline leaves is journalled
    PARK = "park"
    #: what a slice leaves whose node is out of reach is journalled
    HOLD = "hold"
    SETTLE = "settle"
    RELEASE = "release"
    # -- moves that are not to be made after all
    #: a cancel threw away what was aside
    WIND_UP = "wind_up"
    #: the copy aside of a move that is given up is gone
    UNDO = "undo"
    #: a copy on a target that is out of reach is noted for the cleanup
    NOTE_UNDO = "note_undo"
    #: what is given up, and the host had committed, is flipped in Redis as well
    FLIP_LATE = "flip_late"
    #: what is given up or cancelled is counted
    COUNT = "count"
    # -- the end of groups and jobs
    FINISH = "finish"
    FINALIZE = "finalize"
    RETIRE = "retire"
    # -- the cleanup
    PURGE = "purge"
    PURGED = "purged"
    FREE_LATE = "free_late"
    TRASH_LATE = "trash_late"
    FREED_LATE = "freed_late"
    UNDO_LATE = "undo_late"
    UNDONE_LATE = "undone_late"
    #: what the host had committed is a source to be freed
    EXPECTED_LATE = "expected_late"
    ORPHAN_COPY = "orphan_copy"
    ORPHAN_TRASH = "orphan_trash"
    OLD_MANIFEST = "old_manifest"
    #: a freed source whose copy was taken off as well is back at its key
    RESTORE = "restore"
    # -- the cleanup's search for what Redis forgot
    #: a freed source is back at its key, beside its copy
    STRAY_UNDONE = "stray_undone"
    #: a copy is in the trash of its target …
    STRAY_OFF = "stray_off"
    #: … and back, since the original was gone
    STRAY_BACK = "stray_back"
    #: the manifest is written that a copy lacks which is the object now
    STRAY_LISTED = "stray_listed"
    #: the source of a copy that is the object now is to be freed
    STRAY_FREE = "stray_free"
    #: readers are sent to the one that is the object
    STRAY_PLACED = "stray_placed"
    SEARCHED = "searched"
    # -- the reindex, after Redis was lost
    #: a node that manifests name is known to have been adopted
    INDEX_ADOPTED = "index_adopted"
    #: the source of a copy that a manifest explains is to be freed …
    INDEX_FREE = "index_free"
    #: … once the host's catalogue, where it says where objects are, sends readers to the copy
    INDEX_COMMITTED = "index_committed"
    #: the host's catalogue is put right
    INDEX_CORRECTED = "index_corrected"
    INDEX_PLACED = "index_placed"
    INDEX_UNPLACED = "index_unplaced"
    INDEX_MOVED = "index_moved"
    INDEX_USAGE = "index_usage"
    INDEX_TRASH = "index_trash"
    INDEX_STAGED = "index_staged"


ENVIRONMENT: Final = "REBALANCE_FAULTS"
LEDGER: Final = "REBALANCE_FAULTS_LEDGER"
_seen: Counter[str] = Counter()


@cache
def _registered() -> dict[str, tuple[str, int]]:
    table: dict[str, tuple[str, int]] = {}
    for item in filter(None, os.environ.get(ENVIRONMENT, "").split(",")):
        step, _, action = item.partition("=")
        kind, _, nth = action.partition(":")
        for each in Step if step == "*" else (Step(step),):
            table[each] = (kind, int(nth or "1"))
    return table


def armed() -> bool:
    """Whether a test has asked for any fault in this process."""
    return bool(_registered())


def reached(step: Step, staged: Callable[[], Path | None] | None = None) -> None:
    """Say that a step is done; strike if a test asked for it here (``staged`` tells which copy it may spoil)."""
    registered = _registered()
    if not registered or (fault := registered.get(step)) is None:
        return
    kind, nth = fault
    if kind == "maybe":
        _maybe(step, nth)
        return
    _seen[step] += 1
    if _seen[step] < nth or not _first_strike(f"{step}={kind}"):
        return
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    path = staged() if kind == "corrupt" and staged is not None else None
    if path is not None:
        corrupt(path)


def _maybe(step: Step, one_in: int) -> None:
    """Die by chance; every worker has dice of its own, so that the same one does not die at the same place each time."""
    ledger = Path(os.environ.get(LEDGER, os.devnull))
    if random.randrange(one_in) or (ledger / "calm").exists():  # noqa: S311  no secret
        return
    if ledger.is_dir():
        with (ledger / "strikes").open("a") as file:
            file.write(f"{step}\n")
    os.kill(os.getpid(), signal.SIGKILL)


def corrupt(staged: Path) -> None:
    """Flip a bit of a staged copy, as a bad cable or a bad disk would: its size and times stay."""
    data = bytearray(staged.read_bytes())
    times = staged.stat()
    if data:
        data[len(data) // 2] ^= 0x01
        with staged.open("r+b") as file:
            file.write(data)
        os.utime(staged, ns=(times.st_atime_ns, times.st_mtime_ns))


def _first_strike(name: str) -> bool:
    ledger = os.environ.get(LEDGER)
    if ledger is None:
        return True
    try:
        (Path(ledger) / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
