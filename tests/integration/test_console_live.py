"""The console's watcher: what pages hear of a fleet, a job, a Redis that goes away, and of their own slowness."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.console.watcher import QUEUE_LENGTH, Event, Watcher
from tests.support.arena import context_of, objects, rebalancer_of
from tests.support.engine import Engine
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from rebalance_tasks import Rebalancer
    from tests.conftest import FleetFactory

pytestmark = pytest.mark.integration

HEARD_S = 20.0


@pytest.fixture
def rebalancer(fleet_config: FleetFactory) -> Rebalancer:
    nodes = {"a": NodeSpec(objects(20, 1000), 40_000), "b": NodeSpec({}, 40_000), "c": NodeSpec({}, 40_000)}
    return rebalancer_of(fleet_config(nodes, fleet={"mode": "observe"}))


async def heard(events: AsyncIterator[Event], topic: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Read until an event comes that is wanted."""
    async with asyncio.timeout(HEARD_S):
        async for event in events:
            if event.topic == topic and wanted(event.data):
                return event.data
    msg = "the stream ended"
    raise AssertionError(msg)


def watched(watcher: Watcher, scenario: Callable[[AsyncIterator[Event]], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario beside the watcher's tasks, as one open page."""

    async def run() -> None:
        task = asyncio.create_task(watcher.run())
        try:
            async with aclosing(watcher.events()) as events:
                await scenario(events)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert watcher._pages == set()


def test_a_page_hears_of_the_fleet_a_job_and_its_end(rebalancer: Rebalancer) -> None:
    watcher = Watcher(rebalancer)

    async def scenario(events: AsyncIterator[Event]) -> None:
        await heard(events, "fleet", lambda fleet: fleet["surveyed"] is False)
        checked = await asyncio.to_thread(rebalancer.check)
        assert checked.plan_id is not None
        await heard(events, "check", lambda check: check["plan_id"] == checked.plan_id)
        job = await asyncio.to_thread(rebalancer.start, checked.plan_id)
        await heard(events, "job", lambda data: data["job_id"] == job.job_id)
        await asyncio.to_thread(rebalancer.pause, job.job_id)
        told = await heard(events, "timeline", lambda entry: entry["what"] == "paused")
        assert told["job_id"] == job.job_id
        await asyncio.to_thread(rebalancer.resume, job.job_id)
        await heard(events, "timeline", lambda entry: entry["what"] == "resumed")
        await asyncio.to_thread(Engine().finish, job.job_id)
        ended = await heard(events, "job", lambda data: data["terminal"])
        assert (ended["status"], ended["completed_moves"]) == ("completed", job.total_moves)

    watched(watcher, scenario)


def test_a_page_hears_how_full_the_nodes_become(rebalancer: Rebalancer) -> None:
    watcher = Watcher(rebalancer)
    rebalancer.plan()

    async def scenario(events: AsyncIterator[Event]) -> None:
        await heard(events, "fleet", lambda fleet: fleet["surveyed"] is True)
        await asyncio.to_thread(context_of(rebalancer).fleet.set_usage, {"a": 15_000, "b": 5_000, "c": 0})
        told = await heard(events, "usage", lambda _: True)
        assert told == {"a": 15_000, "b": 5_000}

    watched(watcher, scenario)


def test_a_job_that_ends_before_anybody_looks_is_told_all_the_same(rebalancer: Rebalancer) -> None:
    watcher = Watcher(rebalancer)
    job = rebalancer.start(rebalancer.plan())
    Engine().finish(job.job_id)
    watcher.follow(job.job_id)

    async def scenario(events: AsyncIterator[Event]) -> None:
        await heard(events, "job", lambda data: data["job_id"] == job.job_id and data["terminal"])

    watched(watcher, scenario)


def test_pages_hear_that_redis_is_away_and_that_it_is_back(
    rebalancer: Rebalancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher(rebalancer)

    def away(*_: Any) -> None:
        msg = "connection refused"
        raise ConnectionError(msg)

    async def scenario(events: AsyncIterator[Event]) -> None:
        await heard(events, "fleet", lambda _: True)
        with monkeypatch.context() as patched:
            patched.setattr(rebalancer, "overview", away)
            told = await heard(events, "offline", lambda _: True)
            assert told["cause"] == "redis_unreachable"
        await heard(events, "fleet", lambda _: True)

    watched(watcher, scenario)


def test_a_page_that_does_not_read_is_told_to_ask_again_and_costs_no_more_memory(rebalancer: Rebalancer) -> None:
    watcher = Watcher(rebalancer)

    async def scenario(events: AsyncIterator[Event]) -> None:
        await heard(events, "fleet", lambda _: True)
        for number in range(3 * QUEUE_LENGTH):
            watcher._publish(Event("usage", {"a": number}))
        (queue,) = watcher._pages
        assert queue.qsize() <= QUEUE_LENGTH
        await heard(events, "resync", lambda _: True)
        await heard(events, "usage", lambda data: data == {"a": 3 * QUEUE_LENGTH - 1})

    watched(watcher, scenario)
