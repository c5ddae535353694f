"""Small objects in bursts from, to and between folders behind SFTP: whole and once, whatever breaks or changes meanwhile."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.registry import burst
from rebalance_tasks.drivers.sftp.driver import SftpDriver
from rebalance_tasks.drivers.sftp.many import SftpMany
from rebalance_tasks.drivers.sftp.packets import PIECE_BYTES, Dialect
from rebalance_tasks.drivers.small_burst import AT_ONCE, MOST_BYTES, SmallBurst
from tests.support import checker
from tests.support.engine import Engine, moves_between
from tests.support.fleets import NodeSpec, made_up
from tests.support.killing import killed
from tests.support.killing_stores import carry_and_die_in_a_burst
from tests.support.openssh import openssh_server, sshd_binary
from tests.support.places import LocalPlace, S3Place, SftpPlace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rebalance_tasks.drivers.base import Driver
    from tests.conftest import FleetFactory
    from tests.support.places import Place
    from tests.support.sftp_harness import Server

pytestmark = pytest.mark.integration

M1: Final = MoveId("job-1.0")
SIZES: Final = {
    **{f"o/{number:02d}": 3000 + number for number in range(2 * AT_ONCE + 5)},
    "pieces": 2 * PIECE_BYTES,
    "odd": PIECE_BYTES + 1,
    "most": MOST_BYTES,
    "large": MOST_BYTES + 1,
}
TO, FROM, BETWEEN = ("disk", "sftp"), ("sftp", "disk"), ("sftp", "sftp")
PAIRS: Final = pytest.mark.parametrize("pair", [TO, FROM, BETWEEN], ids=" to ".join)


# -- a job ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def places(request: pytest.FixtureRequest, tmp_path: Path, pair: tuple[str, str]) -> dict[str, Place]:
    """Where the two nodes are."""

    def place(name: str, kind: str) -> Place:
        if kind == "s3":
            weed = request.getfixturevalue("weed")
            return S3Place(weed.bucket(), "a/b", weed.options())
        if kind == "disk":
            return LocalPlace(tmp_path / name)
        sftp = request.getfixturevalue("sftp")
        return SftpPlace(tmp_path / name, sftp.port, sftp.options())

    return {name: place(name, kind) for name, kind in zip(("n1", "n2"), pair, strict=True)}


@pytest.fixture
def engine(fleet_config: FleetFactory, places: dict[str, Place]) -> Engine:
    """Two nodes, and a job from one to the other."""
    nodes = {
        name: NodeSpec(capacity_bytes=10**9, settings={"url": place.url(), **place.settings()})
        for name, place in places.items()
    }
    for key, size in SIZES.items():
        places["n1"].put(key, made_up(key, size))
    places["n2"].put("resident", b"abc")
    fleet_config(nodes, options={"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": 10**9})
    made = Engine()
    made.start(moves_between("n1", "n2", SIZES))
    return made


def carried(engine: Engine, places: dict[str, Place], tmp_path: Path) -> None:
    """Everything of a job is where it should be, counted once, and nothing is left over."""
    job = engine.finish()
    assert (job.status, job.completed_moves, dict(job.failures)) == (RebalanceStatus.COMPLETED, len(SIZES), {})
    written = checker.Written({}, {key: "n2" if key == "resident" else "n1" for key in {*SIZES, "resident"}})
    for key, size in SIZES.items():
        written = written.changed(key, made_up(key, size))
    roots = {name: place.mirror(tmp_path / f"mirror-{name}") for name, place in places.items()}
    checker.check(roots, written.changed("resident", b"abc"), job)


@pytest.mark.parametrize("pair", [TO, FROM, BETWEEN, ("s3", "sftp"), ("sftp", "s3")], ids=" to ".join)
def test_a_job_whose_line_breaks_in_the_middle_of_each_step_of_a_burst_moves_everything_once(
    engine: Engine, places: dict[str, Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str]
) -> None:
    original = SftpMany._all
    broken: list[str] = []

    def all_of(self: SftpMany, act: Any, things: Any) -> Any:
        if act.__name__ not in broken:
            broken.append(act.__name__)
            link = self._tree.link
            link.run(lambda _: _nothing())
            link._loop.call_soon_threadsafe(link._open[-1].abort)  # type: ignore[union-attr]
        return original(self, act, things)

    monkeypatch.setattr(SftpMany, "_all", all_of)
    carried(engine, places, tmp_path)
    steps = ["_read"] * (pair[0] == "sftp") + ["_put"] * (pair[1] == "sftp")
    steps += ["_compare"] * (pair[0] == "sftp") + ["_publish"] * (pair[1] == "sftp") + ["_free"] * (pair[0] == "sftp")
    assert broken == steps


@pytest.mark.parametrize(
    ("pair", "step"),
    [(TO, "_put"), (TO, "_publish"), (FROM, "_read"), (FROM, "_free"), (BETWEEN, "_publish"), (BETWEEN, "_free")],
    ids=lambda one: one if isinstance(one, str) else " to ".join(one),
)
def test_after_a_death_in_the_middle_of_a_burst_every_object_is_whole_and_moves_once(
    engine: Engine, places: dict[str, Place], tmp_path: Path, step: str
) -> None:
    assert killed(tmp_path, partial(carry_and_die_in_a_burst, step), places, faults_text="")  # type: ignore[arg-type]
    half_way = checker.look({name: place.mirror(tmp_path / name) for name, place in places.items()}).objects
    assert SIZES.keys() <= half_way.keys(), "an object was nowhere where a reader looks"
    carried(engine, places, tmp_path)


async def _nothing() -> None:
    """Have the line made."""


@pytest.mark.parametrize("pair", [TO], ids=" to ".join)
def test_an_object_that_the_server_garbles_is_noticed_in_a_burst_and_sent_again(
    engine: Engine, places: dict[str, Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Dialect.writes
    garbled: list[str] = []

    def writes(handle: bytes, data: bytes) -> list[tuple[int, bytes]]:
        if len(data) == SIZES["o/03"] and not garbled:
            garbled.append("o/03")
            data = bytes([data[0] ^ 1]) + data[1:]
        return original(handle, data)

    monkeypatch.setattr(Dialect, "writes", staticmethod(writes))
    carried(engine, places, tmp_path)
    assert garbled


# -- single steps -----------------------------------------------------------------------------------------------------
@pytest.fixture(params=["asyncssh", "openssh"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Each server that the machine has."""
    if request.param == "asyncssh":
        yield request.getfixturevalue("sftp")
        return
    if sshd_binary() is None:
        pytest.skip("there is no sshd (Debian: openssh-server)")
    (tmp_path / "server").mkdir()
    with openssh_server(tmp_path / "server") as made:
        yield made


@pytest.fixture
def ends(server: Server, tmp_path: Path, pair: tuple[str, str]) -> Iterator[tuple[Driver, Driver]]:
    """The drivers of a and b."""
    made: list[LocalDriver | SftpDriver] = []
    for name, kind in zip("ab", pair, strict=True):
        (tmp_path / name).mkdir()
        root = str(tmp_path / name)
        made.append(LocalDriver(name, root) if kind == "disk" else SftpDriver(name, server.link(), root))
        made[-1].adopt()
    yield made[0], made[1]
    for driver in made:
        driver.close()


def _staged(ends: tuple[Driver, Driver], some: SmallBurst) -> tuple[Any, Any]:
    """Stage the object ``k``, which has three bytes; return (version of the source, version of the copy)."""
    [copied] = some.stage([("k", M1, 3)], lambda _: None)
    assert copied is not None
    proven = next(iter(some.read_back([(M1, 3, "")]))) or ends[1].staged(M1)
    assert proven is not None
    return copied[0], proven


def _burst(ends: tuple[Driver, Driver]) -> SmallBurst:
    made = burst(*ends, objects=2)
    assert isinstance(made, SmallBurst)
    return made


@PAIRS
def test_an_object_goes_through_all_steps_and_keeps_its_mode_and_time(
    ends: tuple[Driver, Driver], tmp_path: Path
) -> None:
    (tmp_path / "a/k").write_bytes(b"one")
    (tmp_path / "a/k").chmod(0o640)
    os.utime(tmp_path / "a/k", (1_600_000_000, 1_700_000_000))
    some = _burst(ends)
    source, proven = _staged(ends, some)
    with ends[0].hold({M1}), ends[1].hold():
        assert list(some.publish([("k", M1, source, proven)])) == [True]
        # The first objects of a folder on a disk go the driver's own way, which opens it.
        freed = [ends[0].free("k", M1, source).value if not one else "freed" for one in some.free([("k", M1, source)])]
    assert freed == ["freed"]
    status = (tmp_path / "b/k").stat()
    assert ((tmp_path / "b/k").read_bytes(), status.st_mode & 0o777, status.st_mtime) == (b"one", 0o640, 1_700_000_000)
    assert not (tmp_path / "a/k").exists()
    assert ends[0].trashed(M1) == source
    assert list(ends[1].list_staged()) == []


@PAIRS
def test_a_burst_leaves_alone_what_is_not_as_it_was(ends: tuple[Driver, Driver], tmp_path: Path) -> None:
    spent: list[int] = []
    some = _burst(ends)
    (tmp_path / "a/k").write_bytes(b"three")
    os.mkfifo(tmp_path / "a/pipe")
    (tmp_path / "a/link").symlink_to(tmp_path / "a/k")
    odd = [("k", M1, 3), ("k", M1, 8), ("none", M1, 3), ("pipe", M1, 3), ("link", M1, 5), ("../b/k", M1, 5), None]
    assert list(some.stage(odd, spent.append)) == [None] * len(odd)
    assert list(ends[1].list_staged()) == []
    assert spent == [3, 8, 3, 3, 5, 5]
    (tmp_path / "a/k").write_bytes(b"one")
    source, proven = _staged(ends, some)
    (tmp_path / "a/k").write_bytes(b"longer")
    with ends[0].hold({M1}), ends[1].hold():
        assert list(some.publish([("k", M1, source, proven)])) == [False]
        assert list(some.free([("k", M1, source), None])) == [False, False]
    assert not (tmp_path / "b/k").exists()
    assert (tmp_path / "a/k").read_bytes() == b"longer"


@PAIRS
def test_a_burst_publishes_neither_another_copy_nor_over_another_object(
    ends: tuple[Driver, Driver], tmp_path: Path
) -> None:
    (tmp_path / "a/k").write_bytes(b"one")
    some = _burst(ends)
    source, proven = _staged(ends, some)
    aside = tmp_path / "b/.rebalance/tmp" / M1
    (tmp_path / "b/k").write_bytes(b"another")
    assert list(some.publish([("k", M1, source, proven)])) == [False]
    assert (tmp_path / "b/k").read_bytes() == b"another"
    (tmp_path / "b/k").unlink()
    os.truncate(aside, 1)
    assert list(some.publish([("k", M1, source, proven)])) == [False]
    assert not (tmp_path / "b/k").exists()


@pytest.mark.parametrize("pair", [FROM], ids=" to ".join)
def test_what_is_replaced_right_when_a_burst_frees_it_is_declined_and_goes_back(
    ends: tuple[Driver, Driver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/k").write_bytes(b"one")
    some = _burst(ends)
    source, _ = _staged(ends, some)
    original = Dialect.rename

    def rename(self: Dialect, old: bytes, new: bytes) -> tuple[int, bytes]:
        (tmp_path / "a/k").write_bytes(b"written")
        return original(self, old, new)

    monkeypatch.setattr(Dialect, "rename", rename)
    with ends[0].hold({M1}):
        assert list(some.free([("k", M1, source)])) == [False]
        assert ends[0].free("k", M1, source).value == "changed"
    assert (tmp_path / "a/k").read_bytes() == b"written"
