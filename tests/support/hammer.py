"""Readers and writers that hammer a fleet through ``fleet://`` in processes of their own, and log every call.

``python -m tests.support.hammer FOLDER NAME SEED`` reads ``FOLDER/keys.json`` and goes on until there is a file ``FOLDER/stop``.
Every value is a function of its key and its id, so a reader proves each byte of what it got, and which write it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import fsspec

from rebalance_tasks.embedded import die_with_parent
from tests.support.history import Op, read_log, write_log
from tests.support.uncounted import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

READERS: Final = 3
WRITERS: Final = 1
#: A writer rests as long as a person's program would.
WRITER_RESTS_S: Final = 0.01
READER_RESTS_S: Final = 0.005
#: A writer has the patience to wait this long, and a line that was lost is waited for.
STOP_S: Final = 180
#: What is there before anybody writes.
INITIAL: Final = "initial"


def value_of(key: str, value_id: str) -> bytes:
    """The bytes of a value: its name, and noise whose length the name decides."""
    name = f"{key}\n{value_id}\n".encode()
    size = 2_000 + int.from_bytes(hashlib.blake2b(name, digest_size=2).digest()) % 20_000
    return name + hashlib.shake_128(name).digest(size)


def id_of(key: str, data: bytes) -> str:
    """Which value this is. Raises: AssertionError when it is none, or not whole."""
    named, value_id = data.split(b"\n", 2)[:2]
    assert named.decode() == key, f"{key} reads as {named!r}"
    assert data == value_of(key, value_id.decode()), f"{key}: {len(data)} wrong bytes"
    return value_id.decode()


class Hammer:
    """The threads of one process."""

    def __init__(self, folder: Path, name: str, seed: int) -> None:
        told = json.loads((folder / "keys.json").read_text(encoding="utf-8"))
        self.read: list[str] = told["read"]
        self.written: list[str] = told["written"]
        self.folder, self.name, self.seed = folder, name, seed
        self.fs = fsspec.filesystem("fleet")
        self.ops: list[Op] = []

    def run(self) -> None:
        roles: list[Callable[[random.Random, str], None]] = [self._reads] * READERS + [self._writes] * WRITERS
        threads = [
            threading.Thread(target=role, args=(random.Random(f"{self.seed}.{place}"), f"{self.name}{place}"))
            for place, role in enumerate(roles)
        ]
        for thread in threads:
            thread.start()
        (self.folder / f"{self.name}.ready").touch()
        for thread in threads:
            thread.join()
        write_log(self.folder / f"{self.name}.log", self.ops)

    def _going(self) -> bool:
        return not (self.folder / "stop").exists()

    def _logged(self, key: str, kind: str, value: str | None, call: Callable[[], str | None]) -> None:
        begun, error = time.monotonic(), ""
        try:
            value = call() if kind == "read" else (call(), value)[1]
        except FileNotFoundError as exc:
            # Nothing there is an answer; whether it may be one is for the checker to say.
            error = "" if kind == "read" else f"{type(exc).__name__}: {exc}"
            value = None if kind == "read" else value
            if kind == "remove":
                kind, error = "read", ""
        except Exception as exc:  # noqa: BLE001  every failure is a finding
            error = f"{type(exc).__name__}: {exc}"
        self.ops.append(Op(key, kind, begun, time.monotonic(), value, error))

    def _reads(self, dice: random.Random, _: str) -> None:
        while self._going():
            key = dice.choice(self.read if dice.random() < 0.7 else self.written)
            self._logged(key, "read", None, lambda key=key: self._read(key, dice))  # type: ignore[misc]
            time.sleep(READER_RESTS_S)

    def _read(self, key: str, dice: random.Random) -> str:
        path = f"test/{key}"
        if dice.random() < 0.8:
            return id_of(key, self.fs.cat_file(path))
        while True:
            try:
                return id_of(key, self._in_pieces(path))
            except OSError as exc:
                # A store shows no old version once another one is there: that is said, and the object is opened again.
                if exc.errno != errno.ESTALE:
                    raise

    def _in_pieces(self, path: str) -> bytes:
        pieces = []
        with self.fs.open(path, "rb", block_size=4096) as file:
            while piece := file.read(3_000):
                pieces.append(piece)
        return b"".join(pieces)

    def _writes(self, dice: random.Random, name: str) -> None:
        number = 0
        while self._going():
            key = dice.choice(self.written)
            if dice.random() < 0.15:
                self._logged(key, "remove", None, lambda key=key: self.fs.rm_file(f"test/{key}"))  # type: ignore[misc]
            else:
                number += 1
                value = f"{name}-{number}"
                self._logged(key, "write", value, lambda key=key, value=value: self._write(key, value, dice))  # type: ignore[misc]
            time.sleep(WRITER_RESTS_S)

    def _write(self, key: str, value: str, dice: random.Random) -> None:
        data = value_of(key, value)
        if dice.random() < 0.7:
            self.fs.pipe_file(f"test/{key}", data)
            return
        with self.fs.open(f"test/{key}", "wb") as file:
            file.write(data[:1000])
            file.write(data[1000:])


class Crowd:
    """Hammering processes, for as long as a context lasts."""

    def __init__(
        self, folder: Path, read: Sequence[str], written: Sequence[str], *, processes: int = 2, seed: int = 0
    ) -> None:
        self.folder, self.processes, self.seed = folder, processes, seed
        folder.mkdir(parents=True)
        keys = {"read": list(read), "written": list(written)}
        (folder / "keys.json").write_text(json.dumps(keys), encoding="utf-8")
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        for number in range(self.processes):
            command = [
                sys.executable,
                "-m",
                "tests.support.hammer",
                str(self.folder),
                f"p{number}",
                f"{self.seed}{number}",
            ]
            with (self.folder / f"p{number}.err").open("wb") as err:
                self._running.append(
                    subprocess.Popen(
                        die_with_parent(command), cwd=Path(__file__).parents[2], stderr=err, env=environment()
                    )
                )
        return self

    def ready(self) -> bool:
        """Whether all of them are at it."""
        for process in self._running:
            assert process.poll() is None, self.complaints()
        return all((self.folder / f"p{number}.ready").exists() for number in range(self.processes))

    def complaints(self) -> str:
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in self.folder.glob("*.err"))

    def stop(self) -> list[Op]:
        """Let them end; return what they did."""
        (self.folder / "stop").touch()
        for process in self._running:
            process.wait(STOP_S)
        assert [process.returncode for process in self._running] == [0] * self.processes, self.complaints()
        return [op for number in range(self.processes) for op in read_log(self.folder / f"p{number}.log")]

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.kill()
            process.wait()


def failures(ops: Sequence[Op], initial: Mapping[str, str]) -> list[str]:
    """What went wrong outright: calls that failed, and misses of keys that are never removed."""
    del initial
    return [f"{op}" for op in ops if op.error]


if __name__ == "__main__":
    Hammer(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])).run()
