"""Readers and writers notice nothing of a whole rebalance across disks, S3 and SFTP, whatever is killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.downtime import Rebalance, places_of, specs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.sftp import Sftp
    from tests.support.weed import Weed

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("locator", ["union", "crush", "catalogue"])
def test_no_read_fails_no_byte_is_wrong_and_no_write_is_lost_during_a_rebalance_with_kills(
    fleet_config: FleetFactory,
    weed: Weed,
    sftp: Sftp,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    locator: str,
) -> None:
    places = places_of(tmp_path, weed, sftp)
    options = {"throttle_bytes_per_sec": 100_000, "imbalance_threshold": 0.05, "target_imbalance": 0.02}
    fleet_config(specs(places, 1_500_000), options=options, fleet={"locator": locator})
    outcome = Rebalance(tmp_path, places, request.getfixturevalue("processes")).run()
    print(outcome.line())  # noqa: T201  shown when it fails
    assert outcome.problems == []
    assert outcome.kills == 2
    assert outcome.job.completed_moves > 0
