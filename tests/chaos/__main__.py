"""Chaos until so many kills: ``CHAOS_KILLS=500 CHAOS_SEED=17 python -m tests.chaos``. Exits 1 when an invariant was broken.

``CHAOS_TOPOLOGY=hosts`` plays on three hosts (`tests.chaos.hosts`), ``forgetful`` with a Redis that loses its last seconds again and
again (`tests.chaos.forgetful`), ``clocks`` with the clocks of workers and beat set wrong (`tests.chaos.clocks`), ``hosted`` with a
host's catalogue, ``stores`` with a bucket and SFTP (`tests.chaos.stores`); ``CHAOS_LOCATOR`` names another locator, ``CHAOS_PACE=0.5`` lets a
slow machine get on between the kills. Each round has the next seed; ``CHAOS_SEED=n CHAOS_KILLS=1`` plays one round again. What a broken round left (nodes, Redis'
files, logs, what was written) is kept for whoever looks into it.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rebalance_tasks.migration import faults
from tests.chaos.clocks import ClocksStorm
from tests.chaos.forgetful import ForgetfulStorm
from tests.chaos.hosted import HostedStorm
from tests.chaos.hosts import HostsStorm
from tests.chaos.stores import StoresStorm
from tests.chaos.storm import Storm
from tests.support.downtime import play

#: How long faults rain in one round, and how much faster than usual.
STORM_S = float(os.environ.get("CHAOS_STORM_S", "45"))
PACE = float(os.environ.get("CHAOS_PACE", "1.5"))
#: One host, or three with disks and lines of their own; one host and a forgetful Redis, or wrong clocks, or a catalogue of its own,
#: or a bucket and SFTP besides its disks.
TOPOLOGIES = {
    "one": Storm,
    "hosts": HostsStorm,
    "forgetful": ForgetfulStorm,
    "clocks": ClocksStorm,
    "hosted": HostedStorm,
    "stores": StoresStorm,
}
#: From so many kills on, readers and writers have rounds of their own, one for each locator.
LONG = 50
LOCATORS = ("union", "crush", "catalogue", "host")


def main() -> int:
    """Run rounds; print each."""
    wanted = int(os.environ.get("CHAOS_KILLS", "500"))
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    storm = TOPOLOGIES[os.environ.get("CHAOS_TOPOLOGY", "one")]
    locator = os.environ.get("CHAOS_LOCATOR", "union")
    kills = rounds = 0
    struck = Counter[str]()
    broken: list[int] = []
    while kills < wanted:
        folder = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
        try:
            result = storm(folder, seed, STORM_S, pace=PACE, service={"locator": locator}).run()
        except AssertionError as error:
            broken.append(seed)
            print(f"CHAOS_SEED={seed}: {error}\n  kept: {folder}", flush=True)  # noqa: T201
            kills += 1  # a round that never ends must not go on for ever
        else:
            kills += result.killed
            struck += result.struck
            print(result.line(), flush=True)  # noqa: T201
            for problem in result.violations:
                print(f"  {problem}", flush=True)  # noqa: T201
            if result.violations:
                broken.append(seed)
                print(f"  kept: {folder}", flush=True)  # noqa: T201
            else:
                shutil.rmtree(folder, ignore_errors=True)
        rounds += 1
        print(f"{kills} of {wanted} kills, {rounds} rounds, broken: {broken or 'none'}", flush=True)  # noqa: T201
        seed += 1
    spared = [step for step in faults.Step if not struck[step]]
    print(f"processes died right after {len(struck)} of {len(faults.Step)} steps, never after {', '.join(spared)}")  # noqa: T201
    if wanted >= LONG:
        broken += [seed for locator in LOCATORS if not readers(locator, seed)]
    return 1 if broken else 0


def readers(locator: str, seed: int) -> bool:
    """A crowd reads and writes while workers are killed; print what came of it, and whether it is as it should be."""
    outcome = play(locator, keys=600, kills=12, seed=seed)
    print(f"readers and writers, {locator}: {outcome.line()}", flush=True)  # noqa: T201
    for problem in outcome.problems:
        print(f"  {problem}", flush=True)  # noqa: T201
    return not outcome.problems


if __name__ == "__main__":
    sys.exit(main())
