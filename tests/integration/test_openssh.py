"""The SFTP driver on OpenSSH's own server, where the machine has one: the shared suite over protocol 3, and keys."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import pytest

from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.base import FreeOutcome, ObjectMetadata
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.registry import burst
from rebalance_tasks.drivers.sftp.driver import SftpDriver
from tests.support.openssh import OpenSsh, openssh_server, sshd_binary
from tests.support.sftp_harness import SftpHarness
from tests.unit.drivers.conformance import DriverConformance, expected_at, stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sshd_binary() is None, reason="there is no sshd (Debian: openssh-server)"),
]


M1: Final = MoveId("job-1.0")
NS: Final = 10**9


@pytest.fixture(scope="module")
def openssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSsh]:
    with openssh_server(tmp_path_factory.mktemp("openssh")) as server:
        yield server


@pytest.fixture
def harness(tmp_path: Path, openssh: OpenSsh) -> Iterator[SftpHarness]:
    made = SftpHarness(tmp_path / "root", openssh)
    yield made
    made.close()


class TestOpenSsh(DriverConformance):
    """Versions are told apart by whole seconds there (docs/reference/drivers.md), so what is written anew is a second older."""

    @staticmethod
    def _put_a_second_apart(harness: Any, key: str, data: bytes) -> None:
        harness.put(key, data)
        path = harness.root / key
        os.utime(path, ns=(path.stat().st_mtime_ns, path.stat().st_mtime_ns - 2 * NS))

    def test_a_new_version_has_another_fingerprint(self, harness: Any) -> None:
        harness.put("k", b"one")
        before = expected_at(harness.driver, "k")
        self._put_a_second_apart(harness, "k", b"two")
        assert harness.driver.stat("k") != before

    def test_the_mtime_travels_or_the_driver_says_that_it_does_not(self, harness: Any) -> None:
        mtime_ns = 1_234_567_890 * NS
        metadata = ObjectMetadata(mtime_ns=mtime_ns + 123_456_789)
        assert stage(harness.driver, M1, b"x", metadata).mtime_ns == mtime_ns
        assert harness.driver.publish(M1, "k").mtime_ns == mtime_ns

    def test_freeing_again_does_not_touch_a_strangers_new_object(self, harness: Any) -> None:
        harness.put("k", b"old")
        expected = expected_at(harness.driver, "k")
        harness.driver.free("k", M1, expected)
        self._put_a_second_apart(harness, "k", b"new")
        assert harness.driver.free("k", M1, expected) is FreeOutcome.FREED
        assert harness.get("k") == b"new"


def test_a_server_that_grants_one_session_is_served_object_by_object(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with openssh_server(tmp_path / "server", "MaxSessions 1") as server:
        source, target = LocalDriver("a", str(tmp_path / "a")), SftpDriver("b", server.link(), str(tmp_path / "b"))
        source.adopt()
        target.adopt()
        (tmp_path / "a/k").write_bytes(b"one")
        assert list(burst(source, target, objects=2).stage([("k", M1, 3)], lambda _: None)) == [None]
        assert stage(target, M1, b"one").size_bytes == 3
        source.close()
        target.close()
