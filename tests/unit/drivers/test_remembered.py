"""A listing brought up to date is the listing that a walk of the whole root would give."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance_tasks.drivers.local import listing as local_listing
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.remembered import Remembered

if TYPE_CHECKING:
    from pathlib import Path

    from rebalance_tasks.drivers.base import Listing

FOLDERS = ("", "a/", "a/b/", "c/", "c/d/e/")
steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "remove", "remove folder", "link", "rename", "nothing"]),
        st.sampled_from(FOLDERS),
        st.sampled_from(["x", "y", "z.tmp"]),
        st.integers(0, 9),
    ),
    max_size=12,
)


class Clock:
    """Folders whose every change shows, whatever the tick of the file system's clock is."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tick = 0

    def show(self, folder: Path) -> None:
        while not folder.is_dir():
            folder = folder.parent
        while folder != self._root.parent:
            self._tick += 1
            os.utime(folder, ns=(0, 10**18 + self._tick))
            folder = folder.parent


def act(root: Path, what: str, folder: str, name: str, size: int) -> None:
    path = root / folder / name
    match what:
        case "write":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(b"." * size)
        case "remove":
            path.unlink(missing_ok=True)
        case "remove folder" if folder:
            shutil.rmtree(path.parent, ignore_errors=True)
        case "link" if not path.is_symlink():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to("nowhere")
        case "rename" if folder == "c/" and path.parent.is_dir() and not (root / "a" / "c").exists():
            (root / "a").mkdir(exist_ok=True)
            path.parent.rename(root / "a" / "c")
        case _:
            pass


def rows(found: Listing | Remembered) -> list[tuple[str, int, int]]:
    keys = found.keys.to_pylist() if isinstance(found, Remembered) else found.keys
    return sorted(zip(keys, found.size_bytes.tolist(), found.mtime_ns.tolist(), strict=True))


def kept(found: Remembered) -> tuple[Remembered, dict[str, Any]]:
    """The listing as the next survey reads it."""
    table = found.to_arrow({"for": "n1"})
    return Remembered.read(table.schema, lambda: table)


@settings(max_examples=30, deadline=None)
@given(rounds=st.lists(steps, min_size=1, max_size=4))
def test_a_listing_brought_up_to_date_is_the_full_listing(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[tuple[str, str, str, int]]]
) -> None:
    root = tmp_path_factory.mktemp("root")
    clock, driver = Clock(root), LocalDriver("n1", str(root), exclude=("*.tmp",))
    before: Remembered | None = None
    with pytest.MonkeyPatch.context() as patch:
        # Its times lie in the future, so that none is taken for too fresh.
        patch.setattr(local_listing, "SETTLED_NS", -(10**19))
        for todo in rounds:
            for step in todo:
                act(root, *step)
                clock.show(root / step[1])
                clock.show(root / "a")
            found = driver.list_changed(before, require_identity=False)
            whole = driver.list_objects(require_identity=False)
            assert rows(found) == rows(whole)
            assert found.left_out == whole.left_out
            before, about = kept(found)
            assert (about, rows(before)) == ({"for": "n1"}, rows(found))
    shutil.rmtree(root)
    driver.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders that are read."""
    found: list[str] = []
    read = local_listing.LocalLister._read_folder

    def noted(lister: Any, fd: int, prefix: str, length: int) -> None:
        found.append(prefix)
        read(lister, fd, prefix, length)

    monkeypatch.setattr(local_listing.LocalLister, "_read_folder", noted)
    return found


def fill(root: Path) -> None:
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "x").write_bytes(b"1234")


def test_only_the_folders_that_changed_are_read(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_listing, "SETTLED_NS", -(10**19))
    fill(tmp_path)
    driver = LocalDriver("n1", str(tmp_path))
    first = driver.list_changed(None, require_identity=False)
    reads.clear()
    again, _ = kept(first)
    assert driver.list_changed(again, require_identity=False) is again
    assert (reads, again.digest()) == ([], first.digest())
    (tmp_path / "a" / "new").write_bytes(b"")
    os.utime(tmp_path / "a", ns=(0, 2 * 10**18))
    assert len(driver.list_changed(again, require_identity=False).keys) == len(FOLDERS) + 1
    assert reads == ["a/"]


def test_a_folder_that_was_changed_just_now_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    """Its time of change may be the same after the next change: clocks of file systems tick slowly."""
    fill(tmp_path)
    os.utime(tmp_path / "a", ns=(0, 10**18 * 9))
    driver = LocalDriver("n1", str(tmp_path))
    first = driver.list_changed(None, require_identity=False)
    assert first.digest() == "", "nobody can tell whether another listing is the same"
    reads.clear()
    driver.list_changed(first, require_identity=False)
    assert "a/" in reads


def test_a_table_of_something_else_is_not_taken_for_a_listing() -> None:
    table = pa.table({"key": ["a"], "size_bytes": [1], "mtime_ns": [1]})
    with pytest.raises((KeyError, TypeError, ValueError)):
        Remembered.read(table.schema, lambda: table)
