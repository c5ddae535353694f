"""A stranger renames a folder while a batch goes through it: nothing lands under a foreign name, nothing is taken from one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.migration.batch import Batch
from tests.support.engine import Engine, moves_between
from tests.support.fleets import made_up

if TYPE_CHECKING:
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

SIZES = {f"d/e/{number}": 100 + number for number in range(6)}


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    return fleet_config({"n1": SIZES, "n2": {"resident": 10}}, options={"throttle_bytes_per_sec": "none"})


def rename_at(monkeypatch: pytest.MonkeyPatch, fleet: Fleet, step: str, node: str, nth: int) -> None:
    """Let a stranger rename ``d/e`` of a node right before the n-th object goes through a step of its batch."""
    original = getattr(Batch, step)
    calls = [0]

    def wrapped(self: Batch, *args: object) -> None:
        calls[0] += 1
        if calls[0] == nth:
            (fleet.roots[node] / "d/e").rename(fleet.roots[node] / "d/theirs")
        original(self, *args)

    monkeypatch.setattr(Batch, step, wrapped)


@pytest.mark.parametrize("nth", [2, 3, 5])
def test_copies_published_into_a_folder_renamed_meanwhile_are_published_again(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    rename_at(monkeypatch, fleet, "_give_key", "n2", nth)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    found = fleet.objects("n2")
    # What the stranger took along before anything was held is theirs; its source is freed for what was published.
    theirs = [key for key in found if key.startswith("d/theirs/")]
    assert len(theirs) <= 1
    assert job.status is RebalanceStatus.COMPLETED
    assert job.completed_moves == len(SIZES)
    for key, size in SIZES.items():
        assert made_up(key, size) in found.values(), key
    assert sum(key.startswith("d/e/") for key in found) == len(SIZES) - len(theirs)
    assert fleet.objects("n1") == {}
    assert fleet.leftovers() == []


@pytest.mark.parametrize("nth", [2, 3, 5])
def test_what_a_stranger_renamed_before_it_was_freed_stays_theirs(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    rename_at(monkeypatch, fleet, "_free", "n1", nth)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, len(SIZES))
    moved = fleet.objects("n2")
    assert {key: moved[key] for key in SIZES} == {key: made_up(key, size) for key, size in SIZES.items()}
    theirs = fleet.objects("n1")
    assert len(theirs) >= len(SIZES) - nth + 1
    for key, content in theirs.items():
        assert content == made_up(key.replace("d/theirs", "d/e"), len(content))
    held = {path.name for path in (fleet.roots["n1"] / ".rebalance/trash").iterdir()}
    assert len(held) + len(theirs) == len(SIZES)
