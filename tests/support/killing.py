"""A process of its own that acts on a fleet until a fault point kills it: what the cases of the kill matrix run.

Each act is a function of this module, since the process is a fresh one (a fork server's child), and may bend the world first:
a stranger writes, an operator pauses, a disk is unmounted.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rebalance_tasks.control import cleanup as cleanups
from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.reindex import reindex
from rebalance_tasks.drivers.local import compiled
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.migration import control as controls
from rebalance_tasks.migration import faults
from rebalance_tasks.migration.batch import Batch
from rebalance_tasks.migration.copying import Copier
from tests.support.engine import Engine, count_copied, small_parts, write_before_free
from tests.support.hooks import DAY_MS, unmount
from tests.support.uncounted import uncounted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.process import BaseProcess

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import FreeOutcome

#: A large object has parts; 64 MiB each would take the matrix minutes.
PART_BYTES: Final = 64 << 10
Roots = dict[str, str]


def run(environment: Mapping[str, str], act: Callable[[Engine, Roots], None], roots: Roots, counter: str) -> None:
    """What the process does."""
    os.environ.update(environment)
    faults._registered.cache_clear()
    small_parts(PART_BYTES)
    count_copied(Path(counter))
    act(Engine(), roots)


def killed(
    tmp_path: Path, act: Callable[[Engine, Roots], None], roots: Mapping[str, Path], *, faults_text: str
) -> bool:
    """Act in a process of its own with faults registered; return whether it was killed.

    Raises:
        AssertionError: it ended in any other way than killed or cleanly.
    """
    process = begun(tmp_path, act, roots, faults_text=faults_text)
    process.join(60)
    assert process.exitcode in {0, -signal.SIGKILL}, f"the process ended with {process.exitcode}"
    return process.exitcode != 0


def begun(
    tmp_path: Path, act: Callable[[Engine, Roots], None], roots: Mapping[str, Path], *, faults_text: str
) -> BaseProcess:
    """Begin to act in a process of its own with faults registered; return that process."""
    ledger = tmp_path / "ledger"
    ledger.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name.startswith(("REBALANCE_", "ACME_"))}
    environment |= {faults.ENVIRONMENT: faults_text, faults.LEDGER: str(ledger)}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    given = {node: str(root) for node, root in roots.items()}
    process = context.Process(target=run, args=(environment, act, given, str(tmp_path / "copied")))
    with uncounted():
        process.start()
    return process


# -- acts -----------------------------------------------------------------------------------------------------------------
def carry(engine: Engine, roots: Roots) -> None:
    """Carry the job to its end, unless an operator stops it: a node that is held is waited for."""
    lifecycle.wake(engine.context, "j1")
    engine.work()
    if "operator" not in engine.job().paused_reasons:
        engine.finish()


def carry_in_rows(engine: Engine, roots: Roots) -> None:
    """Carry the job with machine code from the first object on (`migration.plain`)."""
    compiled.WORTH_LOADING_OBJECTS = 0  # type: ignore[misc]
    carry(engine, roots)


def carry_while_a_stranger_writes(engine: Engine, roots: Roots) -> None:
    """Somebody appends to the first object right before it is freed."""
    write_before_free(Path(roots["n1"]) / "small/0")
    carry(engine, roots)


def carry_and_corrupt(engine: Engine, roots: Roots) -> None:
    """Each object's first copy has a flipped bit."""
    original = Batch._verify

    def verify(self: Batch) -> None:
        for item in self._items:
            if item.entry.tries == 0 and item.move.size_bytes and item.unpublished:
                faults.corrupt(Path(roots["n2"]) / ".rebalance/tmp" / item.move.move_id)
        original(self)

    Batch._verify = verify  # type: ignore[method-assign]
    carry(engine, roots)


def _after_part(act: Callable[[], Any], *, of: str) -> None:
    """Act when a part of an object whose key begins so has been copied; flags are looked at all the time."""
    controls.BEAT_EVERY_S = 0.0  # type: ignore[misc]
    original = Copier._part
    acted: list[bool] = []

    def part(self: Copier, *arguments: Any) -> None:
        original(self, *arguments)
        if arguments[-1].startswith(of) and not acted:
            acted.append(True)
            act()

    Copier._part = part  # type: ignore[method-assign,assignment]


def carry_until_paused(engine: Engine, roots: Roots) -> None:
    """An operator pauses in the middle of the large object, which comes after six small ones."""
    _after_part(lambda: lifecycle.pause(engine.context, "j1"), of="large")
    carry(engine, roots)


def carry_until_cancelled(engine: Engine, roots: Roots) -> None:
    """An operator cancels in the middle of the large object."""
    _after_part(lambda: lifecycle.cancel(engine.context, "j1", requested_by="test"), of="large")
    carry(engine, roots)


def carry_until_cancelled_early(engine: Engine, roots: Roots) -> None:
    """An operator cancels while other objects wait that an earlier worker had begun."""
    _after_part(lambda: lifecycle.cancel(engine.context, "j1", requested_by="test"), of="")
    carry(engine, roots)


def _once_before(name: str, act: Callable[[], Any], node: str) -> None:
    """Act before a node's driver is asked something for the first time."""
    original = getattr(LocalDriver, name)
    acted: list[bool] = []

    def method(self: LocalDriver, *arguments: Any, **more: Any) -> Any:
        if self.node_id == node and not acted:
            acted.append(True)
            act()
        return original(self, *arguments, **more)

    setattr(LocalDriver, name, method)


def carry_and_lose_the_source(engine: Engine, roots: Roots) -> None:
    """The source's disk is unmounted right before its objects are freed."""

    def lose() -> None:
        engine.context.driver("n1").close()
        unmount(Path(roots["n1"]))

    _once_before("free", lose, "n1")
    carry(engine, roots)


def carry_and_lose_the_target(engine: Engine, roots: Roots) -> None:
    """The target's disk is unmounted right after its objects were published."""

    def lose() -> None:
        engine.context.driver("n2").close()
        unmount(Path(roots["n2"]))

    _once_before("write_manifest", lose, "n2")
    carry(engine, roots)


def rebuild(engine: Engine, roots: Roots) -> None:
    """Rebuild what Redis has lost, whoever began that before."""
    reindex(engine.context, force=True)


def tidy(engine: Engine, roots: Roots) -> None:
    """Clean up as if a day had passed, twice; no orphan is too young."""
    cleanups.ORPHAN_AGE = timedelta(0)  # type: ignore[misc]
    for _ in range(2):
        engine.cleanup(later_ms=DAY_MS)


def tidy_while_the_source_is_freed(engine: Engine, roots: Roots) -> None:
    """A frozen runner, whose flip Redis forgot, frees the source in the very instant in which its copy is taken off."""
    original = LocalDriver.free

    def free(self: LocalDriver, key: str, move_id: MoveId, expected: Fingerprint, **more: Any) -> FreeOutcome:
        outcome = original(self, key, move_id, expected, **more)
        source = engine.context.driver("n1")
        version = source.stat(key)
        if self.node_id == "n2" and version is not None:
            source.free(key, move_id, version)
        return outcome

    LocalDriver.free = free  # type: ignore[method-assign]
    tidy(engine, roots)
