"""A host's own catalogue of where its objects are: what it must be able to do, and the one rule of a flip.

With ``[fleet] catalogue = "provider:NAME"`` the host's catalogue, and not Redis, says where an object is (invariant 1): its flip is
the commit point of a move, and what Redis keeps besides follows it (docs/invariants.md, "Where the host's catalogue commits").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Flip(NamedTuple):
    """One change of one key, made only if the key is still where it is believed to be.

    Attributes:
        key: object key.
        source: the node it is believed to be on; ``None``: the catalogue does not have it.
        target: the node it is on from now on; ``None``: it is gone. The same as ``source``: nothing changes but the fence.
        fence: ms since the epoch at which whoever asks got the right to; an older one than the key has seen changes nothing.
    """

    key: str
    source: str | None
    target: str | None
    fence: int


class HostCatalogue(Protocol):
    """What a host offers under an entry point of the group ``rebalance_tasks.providers``: a callable that takes the nodes and returns this.

    Used by several threads at once. An exception, whatever its kind, means that nobody knows what became of the call: it is made
    again later, so each call may come twice.
    """

    def locate(self, keys: Sequence[str]) -> Sequence[str | None]:
        """Return the node of each key, ``None`` for what the catalogue does not have."""
        ...

    def flip(self, flips: Sequence[Flip]) -> Sequence[str | None]:
        """Make each change whose key is at its source, and whose fence is not older than the last one of its key; refuse the others.

        What was made must be durable, and seen by every `locate` that begins later, when this returns.

        Returns:
            Where each key is now. That is the flip's target if it was made, now or before.
        """
        ...

    def entries(self) -> Iterable[tuple[str, str]]:
        """Yield (key, node) of everything, in any order; what changes meanwhile may be missed."""
        ...


def flipped(current: str | None, fence: int, flip: Flip) -> bool:
    """Whether a catalogue makes a flip: the rule that every provider keeps.

    Args:
        current: the node of the key now.
        fence: the newest one that a flip of the key was made with; 0 before the first.
        flip: what is asked.
    """
    return current == flip.source and flip.fence >= fence
