"""What the killed processes of the stores' kill matrix do: as `tests.support.killing`, wherever a node's objects are."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, NoReturn

from rebalance_tasks.drivers.object_stores import direct as object_direct
from rebalance_tasks.drivers.object_stores import files as object_files
from rebalance_tasks.drivers.object_stores.bucket import NoBucket
from rebalance_tasks.drivers.object_stores.driver import ObjectStoreDriver
from rebalance_tasks.drivers.object_stores.files import LEAST_PART_BYTES
from rebalance_tasks.drivers.s3 import bucket as s3_bucket
from rebalance_tasks.drivers.sftp.many import SftpMany
from rebalance_tasks.migration.batch import Batch
from tests.support.engine import small_parts
from tests.support.killing import Roots, carry
from tests.support.places import TMP, append, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rebalance_tasks.migration.item import Item
    from tests.support.engine import Engine

#: A real part of an upload: an engine's part is one of the store's.
PART_BYTES = LEAST_PART_BYTES


def real_parts() -> None:
    """Let large objects be made of parts that a store takes."""
    object_files.PART_BYTES = object_files.AT_KEY_BYTES = PART_BYTES  # type: ignore[misc]
    small_parts(PART_BYTES)


def carry_in_parts(engine: Engine, roots: Roots) -> None:
    """Carry the job with real parts."""
    real_parts()
    carry(engine, roots)


def carry_in_other_parts(engine: Engine, roots: Roots) -> None:
    """Carry the job with parts that a copy on the server's side cuts otherwise: its ETag is another one, as it is on S3."""
    s3_bucket.COPY_BYTES, s3_bucket.COPY_PART_BYTES = PART_BYTES, PART_BYTES + 1  # type: ignore[misc]
    carry_in_parts(engine, roots)


def carry_in_other_parts_while_written(engine: Engine, roots: Roots) -> None:
    """As `carry_in_other_parts`, and somebody writes to the large object right before it is freed."""
    _write_before_free(roots, "large")
    carry_in_other_parts(engine, roots)


def carry_while_a_stranger_writes(engine: Engine, roots: Roots) -> None:
    """Somebody writes to the first object right before it is freed."""
    _write_before_free(roots, "small/0")
    carry(engine, roots)


def _write_before_free(roots: Roots, key: str) -> None:
    _before_freeing(lambda: append(place_of(roots["n1"]), key, b"from a stranger"), key)


def _before_freeing(act: Callable[[], object], key: str = "") -> None:
    """Act once, right before the object with this key, or any, is freed."""
    original = Batch._free_all

    def free_all(self: Batch, items: Sequence[Item]) -> None:
        if any(key in {"", item.move.key} for item in items):
            Batch._free_all = original  # type: ignore[method-assign]
            act()
        original(self, items)

    Batch._free_all = free_all  # type: ignore[method-assign]


def carry_and_corrupt(engine: Engine, roots: Roots) -> None:
    """Each object's first copy has a flipped bit."""
    original = Batch._verify
    place = place_of(roots["n2"])

    def verify(self: Batch) -> None:
        for item in self._items:
            if item.entry.tries == 0 and item.move.size_bytes and item.unpublished:
                assert place.spoil(f"{TMP}/{item.move.move_id}")
        original(self)

    Batch._verify = verify  # type: ignore[method-assign]
    carry(engine, roots)


def aside(act: Callable[[Engine, Roots], None], engine: Engine, roots: Roots) -> None:
    """Act where nothing is read and put straight to its key: every copy through a worker lies aside first."""
    object_direct.SENT_BYTES = 0  # type: ignore[misc]
    act(engine, roots)


def carry_and_die_in_a_burst(step: str, engine: Engine, roots: Roots) -> None:
    """Die when a server has done what a burst asked of it in one step, for many objects at once, and nobody knows it yet."""
    original = SftpMany._all

    def all_of(self: SftpMany, act: Any, things: Any) -> Any:
        done = original(self, act, things)
        if act.__name__ == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    SftpMany._all = all_of  # type: ignore[method-assign]
    carry(engine, roots)


class Unreachable:
    """A bucket whose line is cut."""

    url = "a bucket behind a line that is cut"

    @property
    def capabilities(self) -> NoReturn:
        msg = "the line is cut"
        raise NoBucket(msg)

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        def refuse(*_: Any, **__: Any) -> NoReturn:
            msg = "the line is cut"
            raise NoBucket(msg)

        return refuse


def _cut(engine: Engine, roots: Roots, node: str) -> None:
    """Make a node unreachable."""
    driver: Any = engine.context.driver(node)
    if isinstance(driver, ObjectStoreDriver):
        driver.bucket = driver._trash._bucket = driver._manifests._bucket = Unreachable()  # type: ignore[assignment]
    else:
        driver.close()
        place_of(roots[node]).lose()


def carry_and_lose_the_source(engine: Engine, roots: Roots) -> None:
    """The source is out of reach right before its objects are freed."""
    _before_freeing(lambda: _cut(engine, roots, "n1"))
    carry(engine, roots)


def carry_and_lose_the_target(engine: Engine, roots: Roots) -> None:
    """The target is out of reach right after its objects were published."""
    kind: Any = type(engine.context.driver("n2"))
    original = kind.write_manifest

    def write_manifest(self: Any, *arguments: Any) -> None:
        if self.node_id == "n2":
            kind.write_manifest = original
            _cut(engine, roots, "n2")
        original(self, *arguments)

    kind.write_manifest = write_manifest
    carry(engine, roots)
