"""What goes wrong with an SFTP server: a line that breaks, a disk that is full, a user who may not, a host that is another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncssh
import pytest

from rebalance_tasks.core.errors import NodeFull, NodeMissing, NodeNotWritable
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.base import FreeOutcome
from rebalance_tasks.drivers.sftp.driver import SftpDriver
from rebalance_tasks.drivers.sftp.link import SftpAddress, SftpLink
from rebalance_tasks.drivers.sftp.tree import SftpTree
from rebalance_tasks.embedded import HOST
from tests.support.fleets import made_up
from tests.support.hooks import after
from tests.support.proxy import ChaosProxy
from tests.unit.drivers.conformance import read_all, stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


def test_a_free_whose_answer_was_lost_with_the_line_is_counted_as_made(
    driver: SftpDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = driver.publish(M1, "a/k", expected=stage(driver, M1, DATA))

    def asked_once_more(*_: object) -> None:
        why = "the second try finds nothing"
        raise asyncssh.SFTPNoSuchFile(why)

    after(monkeypatch, SftpTree, "move_aside", asked_once_more)
    assert driver.free("a/k", M1, published) is FreeOutcome.FREED
    assert driver.free("a/none", MoveId("job-1.1"), published) is FreeOutcome.GONE


@pytest.mark.parametrize("replaced", [True, False])
def test_what_a_burst_has_put_into_the_trash_and_is_another_version_goes_back(
    driver: SftpDriver, tmp_path: Path, replaced: bool
) -> None:
    published = driver.publish(M1, "a/k", expected=stage(driver, M1, DATA))
    root = tmp_path / "root"
    (root / "a/k").write_bytes(b"newer")
    (root / "a/k").rename(root / ".rebalance/trash" / M1)
    if replaced:
        (root / "a/k").write_bytes(b"newest")
    with driver.hold({M1}):
        assert driver.free("a/k", M1, published) is FreeOutcome.CHANGED
    assert read_all(driver, "a/k") == (b"newest" if replaced else b"newer")
    assert list(driver.list_trash()) == []
    assert driver.probe().kept_files == int(replaced)
