"""The back door to a local node, and a way to be an ordinary user where the tests run as root."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.local.linux import PORTABLE, Syscalls, native

if TYPE_CHECKING:
    from collections.abc import Iterator

#: "nobody" on every Linux; no name is needed.
ORDINARY_ID = 65534
CALLS = {"native": native(), "portable": PORTABLE}


class LocalHarness:
    """An adopted node in a folder of its own."""

    def __init__(self, root: Path, calls: Syscalls | None = None) -> None:
        self.root, self.calls = root, calls
        self._drivers: list[LocalDriver] = []
        root.mkdir(exist_ok=True)
        self.driver = self.another("node-1")
        self.driver.adopt()

    def put(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.root.parent / "stranger"
        aside.write_bytes(data)
        aside.rename(path)

    def get(self, key: str) -> bytes | None:
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, key: str) -> None:
        (self.root / key).unlink()

    def clear(self) -> None:
        for path in self.root.iterdir():
            if path.name != ".rebalance":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def lose_identity(self) -> None:
        shutil.rmtree(self.root / ".rebalance")

    def another(self, node_id: str) -> LocalDriver:
        driver = LocalDriver(node_id, str(self.root), calls=self.calls)
        self._drivers.append(driver)
        return driver

    def holds(self, key: str) -> bool:
        return True

    def close(self) -> None:
        for driver in self._drivers:
            driver.close()


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Act without root's rights: drop the effective ids (the kernel then ignores root's capabilities)."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(ORDINARY_ID)
    os.seteuid(ORDINARY_ID)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder an ordinary user can reach and owns (pytest's own is closed to others)."""
    with ordinary_user():
        path = Path(tempfile.mkdtemp(prefix="rebalance-"))
    try:
        yield path
    finally:
        path.chmod(0o700)
        for folder, below, _ in os.walk(path):  # a test may have closed some; opened before the walk goes down
            for name in below:
                (Path(folder) / name).chmod(0o700)
        shutil.rmtree(path)
