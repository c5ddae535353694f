"""Find out what a file system behind fsspec really does, by small files below ``.rebalance/tmp``.

fsspec's implementations differ in what they keep to themselves: one appends by writing over, one renames by a copy that has another
time, one strips spaces off names. So each node is tried once a process before it is written to, and names are tried by what is odd
about them: a character that a name of the same kind was seen to keep is not tried again.
"""

from __future__ import annotations

import os
import threading
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rebalance_tasks.drivers.trees.calls import TMP

if TYPE_CHECKING:
    from rebalance_tasks.drivers.fsspec.tree import FsspecTree

_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_BODY: Final = b"probe"


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a file system was seen to do.

    Attributes:
        tells_versions: a file shows a time or an entity tag.
        keeps_versions: it shows the same after a rename.
        appends: bytes can be written after those that are there.
    """

    tells_versions: bool
    keeps_versions: bool
    appends: bool


def probe(tree: FsspecTree) -> Abilities:
    """Try a file system; leave nothing behind."""
    name = f"{TMP}/probe-{os.urandom(8).hex()}"
    renamed = f"{name}-renamed"
    tree.make_folder(name)
    try:
        tree.write(name, _BODY)
        before = tree.regular(name)
        tree.rename(name, renamed)
        after = tree.regular(renamed)
        appends = _appends(tree, renamed)
    finally:
        tree.remove(name)
        tree.remove(renamed)
    return Abilities(
        tells_versions=before is not None and bool(before.fingerprint.etag),
        keeps_versions=before is not None and before == after,
        appends=appends,
    )


def _appends(tree: FsspecTree, name: str) -> bool:
    try:
        tree.append(name, _BODY)
    except Exception:  # noqa: BLE001  whatever it says, it does not append
        return False
    return tree.read(name, 0, 2 * len(_BODY)) == _BODY + _BODY


class OddNames:
    """Which names the file system keeps as they are."""

    def __init__(self, tree: FsspecTree) -> None:
        """Know nothing yet."""
        self._tree = tree
        self._kept: set[str] = set()
        self._lock = threading.Lock()

    def keeps(self, key: str) -> bool:
        """Whether every component of a key stays what it is."""
        return all(self._keeps(component) for component in key.split("/"))

    def _keeps(self, component: str) -> bool:
        odd = features(component)
        if odd <= self._kept:
            return True
        with self._lock:
            if not odd <= self._kept and self._try(component):
                self._kept |= odd
            return odd <= self._kept

    def _try(self, component: str) -> bool:
        folder = f"{TMP}/names-{os.urandom(8).hex()}"
        name = f"{folder}/{component}"
        try:
            self._tree.make_folder(name)
            self._tree.write(name, _BODY)
            kept = [found for found, _ in self._tree.entries(folder)] == [component]
            return kept and self._tree.read(name, 0, len(_BODY)) == _BODY
        except Exception:  # noqa: BLE001  a name that cannot be written is not kept
            return False
        finally:
            self._tree.remove_folder(folder)


def features(component: str) -> frozenset[str]:
    """What is odd about a name: its characters, those it begins and ends with, and whether it is normalised."""
    odd = {char for char in component if char not in _PLAIN}
    if component and not component[0].isalnum():
        odd.add(f"first {component[0]}")
    if component and not component[-1].isalnum():
        odd.add(f"last {component[-1]}")
    if not component.isascii() and not unicodedata.is_normalized("NFC", component):
        odd.add("not NFC")
    return frozenset(odd)
