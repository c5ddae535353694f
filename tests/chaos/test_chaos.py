"""A short round of chaos; ``make chaos`` goes on until 500 kills. The seed is printed: ``CHAOS_SEED=… make chaos`` plays it again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.chaos.__main__ import LOCATORS
from tests.chaos.clocks import CLOCK_WEIGHTS, ClocksStorm
from tests.chaos.forgetful import FORGETFUL_WEIGHTS
from tests.chaos.hosted import HostedStorm
from tests.chaos.hosts import HOST_WEIGHTS, HostsStorm
from tests.chaos.schedule import WEIGHTS, schedule
from tests.chaos.stores import StoresStorm
from tests.chaos.storm import Storm
from tests.support import clocks

if TYPE_CHECKING:
    from pathlib import Path

    from rebalance_tasks.embedded import EmbeddedServer

pytestmark = [pytest.mark.chaos, pytest.mark.integration, pytest.mark.timeout(170)]

#: How long faults rain; the whole round takes about three times as long.
STORM_S = 6.0
HOSTS_STORM_S = 3.0


@pytest.mark.parametrize(("storm", "storm_s"), [(Storm, STORM_S), (HostsStorm, HOSTS_STORM_S)], ids=["one", "hosts"])
def test_nothing_is_lost_and_everything_is_counted_once_whatever_is_killed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    redis_server: EmbeddedServer,
    storm: type[Storm],
    storm_s: float,
) -> None:
    for name in [name for name in os.environ if name.startswith("REBALANCE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REBALANCE_CONFIG", "")  # set by the storm; taken back with the test
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    # Each run has one of them: its time is all that a test may take.
    locator = LOCATORS[seed % len(LOCATORS)]
    if locator == "host" and storm is Storm:
        storm = HostedStorm
    service = {"locator": "catalogue" if locator == "host" else locator}
    print(f"CHAOS_SEED={seed} of locator {locator}")  # noqa: T201  to be played again
    result = storm(tmp_path / "chaos", seed, storm_s, objects=50, pace=2.0, service=service).run()
    print(result.line())  # noqa: T201
    assert result.violations == []
    assert result.reads > 0


def test_a_seed_is_a_schedule() -> None:
    assert schedule(7, 60.0) == schedule(7, 60.0)
    assert schedule(7, 60.0) != schedule(8, 60.0)
    # A longer storm begins as a shorter one does, so that a find can be cut down.
    assert schedule(7, 60.0)[: len(schedule(7, 20.0))] == schedule(7, 20.0)


def test_every_kind_of_fault_has_its_turn() -> None:
    seen = {act.name for seed in range(20) for act in schedule(seed, 60.0, weights=HOST_WEIGHTS)}
    assert seen == set(HOST_WEIGHTS) > set(WEIGHTS) == set(FORGETFUL_WEIGHTS)
    assert all(callable(getattr(storm, name)) for storm in (Storm, StoresStorm) for name in WEIGHTS)
    assert all(callable(getattr(HostsStorm, name)) for name in HOST_WEIGHTS)
    assert all(callable(getattr(ClocksStorm, name)) for name in CLOCK_WEIGHTS)


def test_a_process_has_the_clock_that_its_file_says_and_so_have_its_children(tmp_path: Path) -> None:
    clocks.set_offset(tmp_path / "clock", 86_400)
    program = "import os, time; os.fork() == 0 or os.wait(); print(time.time(), flush=True)"
    told = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **clocks.environment(tmp_path / "clock")},
        capture_output=True,
        check=True,
        text=True,
    )
    shown = [float(line) - time.time() for line in told.stdout.split()]
    assert [round(ahead_s / 3600) for ahead_s in shown] == [24, 24]
