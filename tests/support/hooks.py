"""Faults for tests of the engine in one process: act at an exact moment, spoil a copy, die, unmount a disk."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.migration import batch as batches
from rebalance_tasks.migration import committing, endings, faults, undo
from rebalance_tasks.migration import control as controls
from rebalance_tasks.migration import slice as slices
from rebalance_tasks.migration.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rebalance_tasks.migration.item import Item

#: The objects of the fleet that most of these tests use, in the order of their moves.
SIZES = {"a/one": 3000, "a/two": 5000, "b/three": 7000, "four": 0, "five": 1}
#: A cleanup that much later finds every grace over.
DAY_MS = 86_400_000


def after(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, act: Callable[..., Any], *, times: int = 1) -> None:
    """Act (with the arguments of the call) right after a method has returned, so many times."""
    original = getattr(owner, name)
    left = [times]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if left[0]:
            left[0] -= 1
            act(*args, **kwargs)
        return result

    monkeypatch.setattr(owner, name, wrapped)


def before(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, act: Callable[..., Any], *, times: int = 1) -> None:
    """Act right before a method is called, so many times."""
    original = getattr(owner, name)
    left = [times]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if left[0]:
            left[0] -= 1
            act(*args, **kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def corrupt(monkeypatch: pytest.MonkeyPatch, *, times: int) -> list[str]:
    """Flip a byte of staged copies that have one, as ``REBALANCE_FAULTS=stage=corrupt`` does in a worker."""
    strikes: list[str] = []

    def strike(step: faults.Step, staged: Callable[[], Path | None] | None = None) -> None:
        path = staged() if step is faults.Step.STAGE and staged is not None else None
        if path is not None and path.stat().st_size and len(strikes) < times:
            strikes.append(path.name)
            faults.corrupt(path)

    monkeypatch.setattr(batches, "reached", strike)
    monkeypatch.setattr(committing, "reached", strike)
    monkeypatch.setattr(endings, "reached", strike)
    return strikes


def append(path: Path) -> bytes:
    with path.open("ab") as file:
        file.write(b"more")
    return path.read_bytes()


def replace(path: Path) -> bytes:
    fresh = path.with_name("fresh")
    fresh.write_bytes(b"another one altogether")
    fresh.rename(path)
    return path.read_bytes()


def rewrite_in_place(path: Path) -> bytes:
    content = bytes(reversed(path.read_bytes()))
    path.write_bytes(content)
    return content


#: where in the way of one object a stranger acts: owner, method, and whether after (or before) it
MOMENTS = {
    "between stage and publish": (Batch, "_verify", after),
    "between publish and flip": (LocalDriver, "write_manifest", before),
    "between flip and free": (Batch, "_free", before),
}


@contextmanager
def slices_of_one_object() -> Iterator[None]:
    """Let each batch hold one object and each slice one batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "BATCH_OBJECTS", 1)
        patch.setattr(controls.SliceControl, "overdue", property(lambda self: self._tokens_spent()))
        seen: list[int] = []
        patch.setattr(controls.SliceControl, "_tokens_spent", lambda _: bool(seen), raising=False)
        after(patch, Batch, "run", lambda *_: seen.append(1))
        yield


def unmount(root: Path) -> None:
    """What an unmounted disk leaves: an empty mount point."""
    root.rename(root.with_name(f"{root.name}-unmounted"))
    root.mkdir()


def mount_again(root: Path) -> None:
    root.rmdir()
    root.with_name(f"{root.name}-unmounted").rename(root)


class WorkerDiedError(BaseException):
    """Stands in for SIGKILL."""


def deadly(patch: pytest.MonkeyPatch, step: str, key: str) -> None:
    """Die at a step whenever it is reached with an object in the batch that has not been given up."""
    in_hand: list[Item] = []
    before(patch, Batch, "run", lambda batch: in_hand.__setitem__(slice(None), batch._items), times=1000)

    def strike(reached: faults.Step, *_: Any) -> None:
        if reached == step and any(item.move.key == key and item.settlement is None for item in in_hand):
            raise WorkerDiedError

    patch.setattr(batches, "reached", strike)
    patch.setattr(committing, "reached", strike)
    patch.setattr(endings, "reached", strike)


def die_at(patch: pytest.MonkeyPatch, *steps: str, when: Callable[[], bool] = lambda: True) -> None:
    """Die the first time one of the steps is reached."""

    def strike(reached: faults.Step, *_: Any) -> None:
        if reached in steps and when():
            raise WorkerDiedError

    patch.setattr(batches, "reached", strike)
    patch.setattr(committing, "reached", strike)
    patch.setattr(endings, "reached", strike)
    patch.setattr(undo, "reached", strike)
