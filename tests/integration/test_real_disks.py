"""Disks that the kernel itself makes fail: no room, read-only of a sudden, unmounted while they are in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.disks import CASES, OBJECTS
from tests.support.hosts import namespaces

if TYPE_CHECKING:
    from tests.conftest import FleetFactory

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not namespaces("--mount"), reason="nothing may be mounted here, not even in a namespace of one's own"
    ),
]

REPOSITORY = Path(__file__).resolve().parents[2]
#: What becomes of the moves; where nothing stands here, all complete.
FAILURES = {
    "full while copying": {"target_full": 1},
    "read-only before publishing": {"node_not_writable": len(OBJECTS)},
    "unmounted before publishing": {"node_missing": len(OBJECTS)},
    "unmounted before the commit": {"node_missing": len(OBJECTS)},
}


def played(fleet_config: FleetFactory, case: str) -> dict[str, Any]:
    """Play a case in a mount namespace."""
    fleet_config({"n1": OBJECTS, "n2": {}}, options={"throttle_bytes_per_sec": "none"})
    done = subprocess.run(
        [*namespaces("--mount"), sys.executable, "-m", "tests.support.disks", case],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_disk_that_fails_in_the_middle_costs_no_object_and_each_move_has_an_outcome(
    fleet_config: FleetFactory, case: str
) -> None:
    found = played(fleet_config, case)
    assert found["half_way"] == []
    assert found["problems"] == []
    assert found["failures"] == FAILURES.get(case, {})
    assert found["completed"] == len(OBJECTS) - sum(found["failures"].values())
