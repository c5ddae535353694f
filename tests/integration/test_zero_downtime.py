"""Readers and writers notice nothing of a whole rebalance across disks, S3 and SFTP, whatever is killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import host
from tests.support.downtime import EMPTY, FULL, OPTIONS, Rebalance, places_of, specs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.sftp import Sftp
    from tests.support.weed import Weed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


@pytest.mark.parametrize("hosted", [False, True], ids=["union", "host"])
def test_no_read_fails_no_byte_is_wrong_and_no_write_is_lost_during_a_rebalance_with_kills(
    fleet_config: FleetFactory,
    weed: Weed,
    sftp: Sftp,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    hosted: bool,
) -> None:
    places = places_of(tmp_path, weed, sftp)
    # Readers of a union have the least to go by; `make chaos` plays the other locators, with more kills.
    if hosted:
        host.install(tmp_path, monkeypatch)
    service = host.HOSTED if hosted else {"locator": "union"}
    fleet_config(specs(places, 1_000_000), options=OPTIONS, fleet=service)
    processes = request.getfixturevalue("processes")
    outcome = Rebalance(tmp_path, places, processes, keys=40 if hosted else 80, hosted=hosted).run()
    print(outcome.line())  # noqa: T201  shown when it fails
    assert outcome.problems == []
    assert outcome.kills == 2
    # Each kind of node gave and took.
    assert outcome.gave >= set(FULL)
    assert outcome.took >= set(EMPTY)
