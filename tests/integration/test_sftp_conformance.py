"""The SFTP driver passes the shared suite on a real server (asyncssh's, protocol 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.access import LONG_AGO_NS, never_read_since
from tests.support.sftp_harness import SftpHarness
from tests.unit.drivers.conformance import DriverConformance

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.sftp import Sftp

pytestmark = pytest.mark.integration


@pytest.fixture
def harness(tmp_path: Path, sftp: Sftp) -> Iterator[SftpHarness]:
    made = SftpHarness(tmp_path / "root", sftp)
    yield made
    made.close()


class TestSftpDriver(DriverConformance):
    pass


def test_a_listing_tells_when_each_object_was_read_last(harness: SftpHarness) -> None:
    for number, name in enumerate(("x", "d/y")):
        harness.put(name, b"body")
        never_read_since(harness.root / name, LONG_AGO_NS + number)
    found = harness.another("node-1").list_part(None)
    assert found.atime_ns is not None
    assert dict(zip(found.keys, found.atime_ns.tolist(), strict=True)) == {"x": LONG_AGO_NS, "d/y": LONG_AGO_NS + 1}
