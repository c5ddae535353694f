"""What a pair of nodes may offer beside `Driver`: the steps of a batch's fresh objects run through in one go.

A burst decides nothing. Its generators do an object when its result is asked for, and may *decline* it (``None`` or ``False``,
with nothing left behind); the engine then goes the drivers' own way, which also says what is wrong. Callers hold the folders
(`Driver.hold`) of the node that a step acts on.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId


class Burst(Protocol):
    """The steps of one batch between two nodes; a context, left when the batch is done.

    Attributes:
        alone: it keeps the nodes busy by itself, so that what it declines is done one by one.
    """

    alone: bool

    def __enter__(self) -> Self:
        """Return itself."""
        ...

    def __exit__(self, *_: object) -> None:
        """Let go of what was not read back."""
        ...

    def stage(
        self, objects: Iterable[tuple[str, MoveId, int] | None], spend: Callable[[int], None]
    ) -> Iterator[tuple[Fingerprint, str] | None]:
        """Copy each object aside, metadata included.

        Args:
            objects: (key, move id, size in bytes), never attempted before; ``None`` is declined.
            spend: asks for leave to write so many bytes; what it raises ends the burst, with nothing left of its object.

        Yields:
            (version of the source that was copied, xxh3-128 of its bytes in hex), or ``None``: declined.
        """
        ...

    def read_back(self, copies: Iterable[tuple[MoveId, int, str] | None]) -> Iterator[Fingerprint | None]:
        """Read staged copies and compare them.

        Args:
            copies: (move id, size in bytes, digest) of what `stage` made; ``None`` is declined.

        Yields:
            Fingerprint of the very copy that was read, or ``None``: declined, or it differs.
        """
        ...

    def publish(self, copies: Iterable[tuple[str, MoveId, Fingerprint, Fingerprint] | None]) -> Iterator[bool]:
        """Give staged copies their keys, each if its source is still what was copied; never overwriting.

        Args:
            copies: (key, move id, version of the source, version of the copy) of what `stage` made; ``None`` is declined.

        Yields:
            Whether it was published; False: declined, nothing was done.
        """
        ...

    def copy(
        self, objects: Sequence[tuple[str, Fingerprint]], spend: Callable[[int], None], *, at_once: int
    ) -> Iterator[bool]:
        """Copy objects straight to their keys, one version each, never overwriting.

        Args:
            objects: (key, version of the source) of what `Remote.direct_bytes` allows to go so.
            spend: as in `stage`; what it raises is raised when the copies that are under way have been yielded.
            at_once: how many may be under way.

        Yields:
            Whether the copy is at its key; False: declined. It may be there all the same where an answer was lost: `copy_from` tells.
        """
        ...

    def free(self, objects: Iterable[tuple[str, MoveId, Fingerprint] | None]) -> Iterator[bool]:
        """Move sources into the trash, each if it is still what was copied, and compare again there.

        Args:
            objects: (key, move id, version that was copied) of what `stage` copied; ``None`` is declined.

        Yields:
            Whether it was freed; False: declined. It may lie in the trash as another version: `Driver.free` settles that.
        """
        ...


class NoBurst:
    """Declines everything: the drivers of this pair do each object alone."""

    alone = False

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was opened."""

    def stage(
        self,
        objects: Iterable[tuple[str, MoveId, int] | None],  # noqa: ARG002  as in `Burst`
        spend: Callable[[int], None],  # noqa: ARG002
    ) -> Iterator[tuple[Fingerprint, str] | None]:
        """Decline."""
        return repeat(None)

    def read_back(self, copies: Iterable[tuple[MoveId, int, str] | None]) -> Iterator[Fingerprint | None]:  # noqa: ARG002
        """Decline."""
        return repeat(None)

    def publish(self, copies: Iterable[tuple[str, MoveId, Fingerprint, Fingerprint] | None]) -> Iterator[bool]:  # noqa: ARG002
        """Decline."""
        return repeat(False)

    def copy(
        self,
        objects: Sequence[tuple[str, Fingerprint]],
        spend: Callable[[int], None],  # noqa: ARG002
        *,
        at_once: int,  # noqa: ARG002
    ) -> Iterator[bool]:
        """Decline."""
        return repeat(False, len(objects))

    def free(self, objects: Iterable[tuple[str, MoveId, Fingerprint] | None]) -> Iterator[bool]:  # noqa: ARG002
        """Decline."""
        return repeat(False)
