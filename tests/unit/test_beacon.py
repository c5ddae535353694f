"""What a worker says of itself to the fleets that it serves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks import beacon
from rebalance_tasks.core.routes import BrokerQueues
from rebalance_tasks.store.errors import StateUnreachable

if TYPE_CHECKING:
    from rebalance_tasks.store.presence import Presence

QUEUES = ["rebalance.control@a", "rebalance.data@a", "rebalance.data@b", "celery"]


class Fleet:
    """A fleet's context as far as the beacon goes; it notes what is said to it."""

    def __init__(self, name: str, *, away: bool = False) -> None:
        self.settings = SimpleNamespace(fleet=name, nodes=(), broker_queues=BrokerQueues(name), digest=lambda: "d")
        self.connection = SimpleNamespace(now_ms=lambda: 1, warnings=list)
        self.presence = self
        self.away = away
        self.asked = 0
        self.told: list[Presence] = []

    def publish(self, presence: Presence) -> None:
        self.asked += 1
        if self.away:
            msg = "away"
            raise StateUnreachable(msg, "away")
        self.told.append(presence)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(beacon, "time", SimpleNamespace(monotonic=lambda: clock.now, time=lambda: 0.0))
    return clock


def serve(monkeypatch: pytest.MonkeyPatch, *fleets: Fleet) -> Any:
    """A worker of these fleets."""
    monkeypatch.setattr(
        beacon, "runtimes_for", lambda _: {fleet.settings.fleet: SimpleNamespace(context=fleet) for fleet in fleets}
    )
    app = SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=QUEUES)))
    return SimpleNamespace(app=app, hostname="w@h")


def test_each_fleet_is_told_of_its_own_queues(monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace) -> None:
    a, b, c = Fleet("a"), Fleet("b"), Fleet("c")
    beacon.Beacon().publish(serve(monkeypatch, a, b, c))
    assert [one.queues for one in (*a.told, *b.told)] == [("rebalance.control", "rebalance.data"), ("rebalance.data",)]
    assert c.told == [], "it serves no queue of this one"


def test_a_fleet_whose_server_is_away_holds_up_the_others_now_and_then_only(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    here, away = Fleet("a"), Fleet("b", away=True)
    sender, made = serve(monkeypatch, away, here), beacon.Beacon()
    for _ in range(13):
        made.publish(sender)
        clock.now += beacon.EVERY_S
    assert (len(here.told), away.asked) == (13, 3)
    away.away = False
    clock.now += beacon.RESTS_S
    made.publish(sender)
    assert len(away.told) == 1


def test_the_only_fleet_of_a_worker_is_told_as_soon_as_its_server_is_back(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    only = Fleet("a", away=True)
    sender, made = serve(monkeypatch, only), beacon.Beacon()
    for _ in range(4):
        made.publish(sender)
        clock.now += beacon.EVERY_S
    assert only.asked == 4
