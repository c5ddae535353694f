"""The best way for a pair of nodes: no reading back where it proves nothing, and a control that several objects at once share.

What a driver can do besides the protocol it says in attributes that others lack (`drivers.base.Remote`); this module asks for
them, so that the steps of a batch need not.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from rebalance_tasks.migration.control import Interrupt, SliceInterrupted
from rebalance_tasks.migration.copying import Copier

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.migration.control import Steering
    from rebalance_tasks.migration.item import BatchContext


def arrives_checked(target: Driver) -> bool:
    """Whether the target refuses bytes that are not what was sent, as a probe has shown: then a copy need not be read back."""
    return bool(getattr(target, "checks_writes", False))


def as_published(target: Driver, key: str, staged: Fingerprint) -> Fingerprint | None:
    """Version under which a staged copy is at its key; None when something else, or nothing, is there.

    As it was published, not as it is: what a stranger has written to it since must not be taken back with it. Where a copy gets a
    version of its own when it is published, its size and its modification time say that it is the one.
    """
    at_key = target.stat(key)
    if at_key is None:
        return None
    if at_key.same_file(staged):
        return staged
    return at_key if _alike(at_key, staged) and not keeps_version(target, staged) else None


def held_copy(target: Driver, move_id: MoveId, staged: Fingerprint) -> Fingerprint | None:
    """Version under which the target's trash holds a copy that was taken back; None when it holds none."""
    held = target.trashed(move_id)
    if held is None or held == staged:
        return held
    return held if _alike(held, staged) and not _keeps_when_copied(target, staged) else None


def _alike(found: Fingerprint, staged: Fingerprint) -> bool:
    """Whether this may be the staged copy where a copy gets a version of its own each time that it gets another name."""
    return staged.mtime_ns != 0 and (found.size_bytes, found.mtime_ns) == (staged.size_bytes, staged.mtime_ns)


def keeps_version(target: Driver, staged: Fingerprint) -> bool:
    """Whether a copy is the same version at its key as the one that was verified: it is no copy of that, or the store keeps its version."""
    return _keeps_when_copied(target, staged) or bool(getattr(target, "uploads_at_keys", False))


def _keeps_when_copied(target: Driver, staged: Fingerprint) -> bool:
    """Whether the copy of a copy has its version; S3 gives that of one that was uploaded in parts another ETag."""
    return bool(getattr(target, "keeps_versions", True)) and "-" not in staged.etag


class SharedControl:
    """A slice's control for several threads: one of them at a time spends, waits and looks at the flags."""

    def __init__(self, control: Steering) -> None:
        """Share ``control``."""
        self._control = control
        self._lock = threading.Lock()
        self._waits = threading.local()

    @property
    def waited_s(self) -> float:
        """Seconds that the calling thread has waited for leave."""
        return float(getattr(self._waits, "seconds", 0.0))

    def _in_turn(self, ask: Callable[..., None], *arguments: int) -> None:
        begun = time.perf_counter()
        try:
            with self._lock:
                ask(*arguments)
        finally:
            self._waits.seconds = self.waited_s + time.perf_counter() - begun

    @property
    def chunk_bytes(self) -> int:
        """See `SliceControl.chunk_bytes`."""
        with self._lock:
            return self._control.chunk_bytes

    @property
    def slice_bytes(self) -> int | None:
        """See `SliceControl.slice_bytes`."""
        with self._lock:
            return self._control.slice_bytes

    @property
    def overdue(self) -> bool:
        """See `SliceControl.overdue`."""
        return self._control.overdue

    def check(self) -> None:
        """See `SliceControl.check`."""
        self._in_turn(self._control.check)

    def spend(self, size_bytes: int) -> None:
        """See `SliceControl.spend`."""
        self._in_turn(self._control.spend, size_bytes)

    def request(self, count: int = 1, *, of_source: bool = False) -> None:
        """See `SliceControl.request`."""
        self._in_turn(partial(self._control.request, of_source=of_source), count)

    def requests_at_once(self, *, of_source: bool = False) -> int | None:
        """See `SliceControl.requests_at_once`."""
        with self._lock:
            return self._control.requests_at_once(of_source=of_source)


class UntilDone(SharedControl):
    """A slice's control for what a cancel does not stop: what is at its key is finished (invariant 7)."""

    def __init__(self, control: Steering, *, winding_up: bool) -> None:
        """Share ``control``; while a cancelled job is wound up nothing stops it, or it would be counted half done."""
        super().__init__(control)
        self._winding_up = winding_up

    @property
    def overdue(self) -> bool:
        """See `SliceControl.overdue`."""
        return super().overdue and not self._winding_up

    def check(self) -> None:
        """See `SliceControl.check`."""
        try:
            super().check()
        except SliceInterrupted as stop:
            if stop.why is not Interrupt.CANCELLED and not self._winding_up:
                raise


def for_lanes(context: BatchContext) -> BatchContext:
    """Return the context with a control and a copier that several threads may use."""
    control = SharedControl(context.control)
    return replace(context, control=control, copier=Copier(control))
