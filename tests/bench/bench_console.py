"""The console with 1,000 nodes and 10,000 moves in a real Chromium: weight, first view, smoothness, and events' way."""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx2

from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from tests.bench.report import Figure
from tests.browser.conftest import chromium_path
from tests.support.arena import context_of
from tests.support.consoles import OPERATOR, console_world
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.bench.report import Report
    from tests.support.consoles import ConsoleWorld

COMMAND: Final = "python -m tests.bench console"
NODES: Final = 1_000
MOVES: Final = 10_000
VIEWS: Final = 9
EVENTS: Final = 30
WEIGHT_LIMIT_KB: Final = 150
VIEW_LIMIT_S: Final = 1.0
EVENT_LIMIT_S: Final = 0.5
#: A task of the page's thread that is longer than this is felt as a hitch.
TASK_LIMIT_S: Final = 0.1
NODE_BYTES: Final = 1_000_000

LONG_TASKS: Final = """
window.longest = 0;
new PerformanceObserver(list => list.getEntries().forEach(e => window.longest = Math.max(window.longest, e.duration)))
  .observe({type: 'longtask', buffered: true});
"""


def run(report: Report) -> None:
    """Measure all of it on one large fleet."""
    specs = {
        f"node{n:04d}": NodeSpec({"o": n * 700}, NODE_BYTES, {"zone": f"z{n % 4}", "rack": f"r{n % 40}"})
        for n in range(NODES)
    }
    with tempfile.TemporaryDirectory() as folder, console_world(Path(folder), specs, concurrency=0) as world:
        world.rebalancer.plan()
        context_of(world.rebalancer).plans.save(_large_plan(), fence=None)
        _events(report, world)
        if chromium_path() is None:
            report.skip("console in a browser", "no chromium on PATH")
        else:
            _views(report, world)


def _large_plan() -> RebalancePlan:
    moves = tuple(
        RebalanceMove(
            object_key=f"photos/{number:05d}.jpg",
            source_node=f"node{500 + number % 500:04d}",
            target_node=f"node{number % 499:04d}",
            size_bytes=50_000 + number,
            reason="the node is fuller than the mean; lowest gravity per byte",
        )
        for number in range(MOVES)
    )
    return RebalancePlan(plan_id="large", fleet="test", moves=moves, imbalance_before=0.7, imbalance_after=0.05)


def _add(
    report: Report, name: str, samples: list[float], unit: str, limit: float | None, *, worst: bool = False
) -> None:
    value = max(samples) if worst else statistics.median(samples)
    detail = f"median {statistics.median(samples):.3g}, worst {max(samples):.3g}"
    report.add(Figure(name, value, unit, limit, COMMAND, {unit: samples}, detail))


# -- events ------------------------------------------------------------------------------------------------------------
def _events(report: Report, world: ConsoleWorld) -> None:
    """From a pause or a resume by another process to its arrival at a page's stream."""
    arrived: dict[str, float] = {}
    seen = {"[]": threading.Event(), "['global']": threading.Event()}

    def listen() -> None:
        headers = {"authorization": f"Bearer {OPERATOR}"}
        address = f"{world.console.url}/api/v1/events"
        # The stream ends with the console.
        with suppress(httpx2.TransportError), httpx2.stream("GET", address, headers=headers, timeout=30) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:") and '"paused_reasons"' in line:
                    data = json.loads(line[5:])
                    if "job_id" not in data:
                        reasons = str(data["paused_reasons"])
                        arrived[reasons] = time.perf_counter()
                        seen[reasons].set()

    threading.Thread(target=listen, daemon=True).start()
    seen["[]"].wait(20)
    samples = []
    for number in range(EVENTS):
        wanted = "[]" if number % 2 else "['global']"
        seen[wanted].clear()
        # At another phase of the watcher's looks each time.
        time.sleep(0.05 + number * 0.037 % 0.2)
        begun = time.perf_counter()
        _ = world.rebalancer.resume_all() if number % 2 else world.rebalancer.pause_all()
        if not seen[wanted].wait(10):
            msg = "an event never reached the page"
            raise RuntimeError(msg)
        samples.append(arrived[wanted] - begun)
    _add(
        report, f"an event reaches the page, worst of {EVENTS} ({NODES} nodes)", samples, "s", EVENT_LIMIT_S, worst=True
    )


# -- views -------------------------------------------------------------------------------------------------------------
def _views(report: Report, world: ConsoleWorld) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        weights, views = [], []
        for _ in range(VIEWS):
            page = browser.new_context(base_url=world.console.url).new_page()
            page.request.post("/login", form={"token": OPERATOR}, max_redirects=0)
            weight, seconds = _first_view(page)
            weights.append(weight / 1000)
            views.append(seconds)
            page.context.close()
        _add(report, f"first view, all bytes ({NODES} nodes)", weights, "kB", WEIGHT_LIMIT_KB, worst=True)
        _add(report, f"first view, empty cache ({NODES} nodes)", views, "s", VIEW_LIMIT_S)
        page = browser.new_context(base_url=world.console.url).new_page()
        page.request.post("/login", form={"token": OPERATOR}, max_redirects=0)
        _pages(report, page)
        browser.close()


def _first_view(page: Page) -> tuple[int, float]:
    answers: list[Any] = []
    page.on("response", lambda answer: None if "/events" in answer.url else answers.append(answer))
    begun = time.perf_counter()
    _visit(page, "/")
    seconds = time.perf_counter() - begun
    return sum(len(answer.body()) for answer in answers), seconds


def _visit(page: Page, path: str) -> float:
    begun = time.perf_counter()
    page.goto(path)
    page.locator("main[aria-busy=false]").wait_for()
    return time.perf_counter() - begun


def _pages(report: Report, page: Page) -> None:
    page.add_init_script(LONG_TASKS)
    loads, turns = [_visit(page, "/plans/large") for _ in range(VIEWS)], []
    for number in range(1, VIEWS + 1):
        begun = time.perf_counter()
        page.get_by_role("button", name="Next").click()
        page.get_by_text(f"{number * 25 + 1}–{number * 25 + 25} of 10,000").wait_for()
        turns.append(time.perf_counter() - begun)
    longest = [page.evaluate("window.longest") / 1000]
    _visit(page, "/")
    for order in ("fullest", "emptiest", "name", "place"):
        page.get_by_label("Order").select_option(order)
        page.wait_for_timeout(300)
    longest.append(page.evaluate("window.longest") / 1000)
    _add(report, f"a plan of {MOVES} moves is there", loads, "s", VIEW_LIMIT_S)
    _add(report, f"its next page of moves, worst of {VIEWS}", turns, "s", EVENT_LIMIT_S, worst=True)
    _add(report, "longest task of the page's thread", longest, "s", TASK_LIMIT_S, worst=True)
