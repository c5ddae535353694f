"""The fsspec driver passes the shared suite on a real FTP server (aioftp's)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.fsspec_harness import FsspecHarness
from tests.unit.drivers.conformance import DriverConformance

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.ftp import Ftp

pytestmark = pytest.mark.integration


class FtpHarness(FsspecHarness):
    def holds(self, key: str) -> bool:
        """The protocol's lines end at a newline, and spaces around a name belong to the line."""
        parts = key.split("/")
        return not any(char in key for char in "\r\n") and not any(part != part.strip() for part in parts)


@pytest.fixture
def harness(tmp_path: Path, ftp: Ftp) -> Iterator[FtpHarness]:
    root = tmp_path / "root"
    made = FtpHarness(root, ftp.url(str(root)), ftp.options())
    yield made
    made.close()


class TestFtpNode(DriverConformance):
    #: Of the keys of any script the same driver is asked on local files; here a round trip each takes a quarter of a minute.
    test_any_unicode_key_goes_the_whole_way_or_is_refused = None  # type: ignore[assignment]
