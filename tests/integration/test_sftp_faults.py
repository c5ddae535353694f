"""What goes wrong with an SFTP server: a line that breaks, a disk that is full, a user who may not, a host that is another."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest

from rebalance_tasks.core.errors import NodeFull, NodeMissing, NodeNotWritable
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.drivers.local import LocalDriver
from rebalance_tasks.drivers.sftp import SftpDriver
from rebalance_tasks.drivers.sftp_burst import AT_ONCE, MOST_BYTES, SftpBurst
from rebalance_tasks.drivers.sftp_link import SftpAddress, SftpLink
from rebalance_tasks.drivers.sftp_packets import Dialect
from rebalance_tasks.embedded import HOST
from tests.support import checker
from tests.support.engine import Engine, moves_between
from tests.support.fleets import NodeSpec, made_up
from tests.support.places import LocalPlace, SftpPlace
from tests.support.proxy import ChaosProxy
from tests.unit.drivers.conformance import read_all, stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.sftp import Sftp

pytestmark = pytest.mark.integration

M1 = MoveId("job-1.0")
DATA = made_up("data", 50_000)


def link_to(sftp: Sftp, port: int, **more: Any) -> SftpLink:
    plain = {"config": None, "client_keys": None, "agent_path": None}
    # The proxy has another port, so the host key is given and not looked up.
    keys: dict[str, Any] = {
        "known_hosts": ([asyncssh.import_public_key(sftp.known_hosts.read_text().split(" ", 1)[1])], [], [])
    }
    return SftpLink(SftpAddress(HOST, port, {**sftp.options(), **keys, **plain, **more}))


@pytest.fixture
def proxy(sftp: Sftp) -> Iterator[ChaosProxy]:
    with ChaosProxy(sftp.port) as made:
        yield made


@pytest.fixture
def driver(sftp: Sftp, proxy: ChaosProxy, tmp_path: Path) -> Iterator[SftpDriver]:
    (tmp_path / "root").mkdir()
    made = SftpDriver("n2", link_to(sftp, proxy.port), str(tmp_path / "root"))
    made.adopt()
    yield made
    made.close()


# -- the line ---------------------------------------------------------------------------------------------------------
def test_a_line_that_breaks_between_any_two_calls_is_made_anew(driver: SftpDriver, proxy: ChaosProxy) -> None:
    proxy.reset_all()
    staged = stage(driver, M1, DATA)
    proxy.reset_all()
    published = driver.publish(M1, "a/k", expected=staged)
    proxy.reset_all()
    assert read_all(driver, "a/k") == DATA
    proxy.reset_all()
    assert driver.free("a/k", M1, published).value == "freed"
    proxy.reset_all()
    assert driver.purge(M1, published)
    assert driver.list_objects().keys == []


@pytest.mark.parametrize("direction", ["request", "reply"])
def test_a_line_that_is_torn_in_the_middle_of_a_copy_costs_a_try_and_no_byte(
    driver: SftpDriver, proxy: ChaosProxy, direction: str
) -> None:
    writer = driver.stage(M1)
    writer.write(memoryview(DATA))
    proxy.tear(direction, 1)
    writer.sync()
    assert proxy.resets
    again = driver.stage(M1, offset=len(DATA))
    again.write(memoryview(b"the end"))
    again.close()
    with driver.open_staged(M1) as source:
        buffer = memoryview(bytearray(len(DATA) + 100))
        assert bytes(buffer[: source.readinto(buffer)]) == DATA + b"the end"


def test_a_server_that_stays_away_is_a_missing_node_and_never_an_empty_one(
    driver: SftpDriver, proxy: ChaosProxy
) -> None:
    proxy.refuse(for_s=600)
    proxy.reset_all()
    for call in (driver.list_objects, driver.check_identity, lambda: driver.stat("k"), lambda: stage(driver, M1, DATA)):
        with pytest.raises(NodeMissing, match=r"does not answer: .* \(3 tries\)"):
            call()


def test_a_host_key_that_is_another_is_refused_at_once_with_the_way_out(sftp: Sftp, tmp_path: Path) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").convert_to_public()
    stranger = SftpDriver("n2", link_to(sftp, sftp.port, known_hosts=([other], [], [])), str(tmp_path))
    with pytest.raises(NodeMissing, match="host key is not the one that known_hosts has") as caught:
        stranger.probe()
    assert "tries" not in str(caught.value)
    stranger.close()


def test_a_password_that_does_not_fit_is_told_without_showing_it(sftp: Sftp, tmp_path: Path) -> None:
    stranger = SftpDriver("n2", link_to(sftp, sftp.port, password="not-the-one"), str(tmp_path))  # noqa: S106
    with pytest.raises(NodeMissing, match="does not let us in") as caught:
        stranger.probe()
    assert "not-the-one" not in str(caught.value)
    stranger.close()


# -- the disk ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("grudge", "error"), [("quota", NodeFull), ("full", NodeFull), ("denied", NodeNotWritable)], ids=str
)
def test_what_the_disk_refuses_is_said_in_our_words(
    driver: SftpDriver, tmp_path: Path, grudge: str, error: type[Exception]
) -> None:
    (tmp_path / "root/.rebalance/tmp/.grudge").write_text(grudge)
    with pytest.raises(error, match="said no"):
        stage(driver, M1, DATA)
    assert driver.list_objects().keys == []


# -- a job ------------------------------------------------------------------------------------------------------------
SIZES = {f"o/{number:02d}": 3000 + number for number in range(2 * AT_ONCE + 5)} | {"large": MOST_BYTES + 1}


@pytest.fixture
def engine(sftp: Sftp, fleet_config: FleetFactory, tmp_path: Path) -> Engine:
    """A disk, and a folder behind the server."""
    places = {"n1": LocalPlace(tmp_path / "n1"), "n2": SftpPlace(tmp_path / "n2", sftp.port, sftp.options())}
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


def carried(engine: Engine, tmp_path: Path) -> None:
    """Everything of a job is where it should be, counted once, and nothing is left over."""
    job = engine.finish()
    assert (job.status, job.completed_moves, dict(job.failures)) == (RebalanceStatus.COMPLETED, len(SIZES), {})
    written = checker.Written({}, {key: "n2" if key == "resident" else "n1" for key in {*SIZES, "resident"}})
    for key, size in SIZES.items():
        written = written.changed(key, made_up(key, size))
    checker.check({name: tmp_path / name for name in ("n1", "n2")}, written.changed("resident", b"abc"), job)


def test_a_job_whose_line_breaks_in_the_middle_of_a_burst_moves_everything_once(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SftpBurst._all
    broken: list[str] = []

    def all_of(self: SftpBurst, act: Any, things: Any) -> Any:
        if act.__name__ not in broken:
            broken.append(act.__name__)
            link = self._target.link
            link._loop.call_soon_threadsafe(link._open[-1].abort)  # type: ignore[union-attr]
        return original(self, act, things)

    monkeypatch.setattr(SftpBurst, "_all", all_of)
    carried(engine, tmp_path)
    assert broken == ["_put", "_publish"]


def test_an_object_that_the_server_garbles_is_noticed_in_a_burst_and_sent_again(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Dialect.write
    garbled: list[str] = []

    def write(handle: bytes, data: bytes) -> tuple[int, bytes]:
        if len(data) == SIZES["o/03"] and not garbled:
            garbled.append("o/03")
            data = bytes([data[0] ^ 1]) + data[1:]
        return original(handle, data)

    monkeypatch.setattr(Dialect, "write", staticmethod(write))
    carried(engine, tmp_path)
    assert garbled


def test_a_burst_leaves_alone_what_changed_since_it_was_read(sftp: Sftp, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    source, target = LocalDriver("a", str(tmp_path / "a")), SftpDriver("b", sftp.link(), str(tmp_path / "b"))
    source.adopt()
    target.adopt()
    (tmp_path / "a/k").write_bytes(b"one")
    burst = target.burst_from(source)
    spent: list[int] = []
    [copied] = burst.stage([("k", M1, 3)], spent.append)
    [proven] = burst.read_back([(M1, 3, "")])
    assert copied is not None
    assert proven is not None
    (tmp_path / "a/k").write_bytes(b"longer")
    assert list(burst.publish([("k", M1, copied[0], proven)])) == [False]
    assert not (tmp_path / "b/k").exists()
    assert list(burst.stage([("k", M1, 3), ("none", M1, 3), None], spent.append)) == [None, None, None]
    os.truncate(tmp_path / "b/.rebalance/tmp" / M1, 1)
    (tmp_path / "a/k").write_bytes(b"one")
    assert list(burst.publish([("k", M1, source.stat("k") or copied[0], proven)])) == [False]
    assert spent == [3, 3, 3]
    source.close()
    target.close()
