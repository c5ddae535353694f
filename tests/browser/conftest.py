"""A Chromium that the system has, driven by playwright; without one these tests are skipped, with a word."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.arena import objects
from tests.support.consoles import OPERATOR, ConsoleWorld, console_world
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

#: Another browser than the one on PATH: a path to a Chromium or Chrome.
VARIABLE = "CHROMIUM"
CAPACITY = 8_000_000
SIZE = 2_000
#: A stretch (256 objects) takes about four seconds, a job half a minute: time to look at it on a busy machine too.
RATE = 120_000


def chromium_path() -> str | None:
    """The browser to drive."""
    named = os.environ.get(VARIABLE)
    return named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = chromium_path()
    if path is None:
        pytest.skip(f"no chromium on PATH (and {VARIABLE} names none)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # In a container Chromium's own sandbox finds no user namespace; the pages are ours.
        launched = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    """Six disks in three zones, the first two nearly full; one key and one rack would be markup if they were let."""
    odd = {"odd/<img src=x onerror=alert(1)>.bin": SIZE}
    specs = {
        "disk1": NodeSpec({**objects(3000, SIZE, "photos/2024"), **odd}, CAPACITY, {"zone": "a", "rack": "<b>r1</b>"}),
        "disk2": NodeSpec(objects(2500, SIZE, "backups/db"), CAPACITY, {"zone": "a", "rack": "r2"}),
        "disk3": NodeSpec(objects(1200, SIZE, "logs"), CAPACITY, {"zone": "b", "rack": "r1"}),
        "disk4": NodeSpec(objects(700, SIZE, "video"), CAPACITY, {"zone": "b", "rack": "r2"}),
        "disk5": NodeSpec(objects(300, SIZE, "mail"), CAPACITY, {"zone": "c", "rack": "r1"}),
        "disk6": NodeSpec({}, CAPACITY, {"zone": "c", "rack": "r2"}),
    }
    options = {"throttle_bytes_per_sec": RATE, "max_moves_per_cycle": 5000, "object_cooldown": "0s"}
    with console_world(
        tmp_path_factory.mktemp("console"),
        specs,
        options=options,
        fleet={"name": "archive", "mode": "observe"},
        concurrency=2,
    ) as made:
        yield made


@pytest.fixture
def page(browser: Browser, world: ConsoleWorld) -> Iterator[Page]:
    """A fresh browser profile at the console; an error in a script, or a refused resource, fails the test."""
    world.stop_jobs()
    context = browser.new_context(base_url=world.console.url, viewport={"width": 1200, "height": 900})
    context.set_default_timeout(20_000)
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on(
        "console", lambda message: errors.append(message.text) if "Content Security Policy" in message.text else None
    )
    yield opened
    context.close()
    assert errors == []


@pytest.fixture
def operator(page: Page) -> Page:
    log_in(page, OPERATOR)
    return page


def log_in(page: Page, token: str) -> None:
    """Log in with a token and wait for the first page."""
    page.goto("/")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    page.locator("main[aria-busy=false]").wait_for()


def axe_source() -> str | None:
    """The text of axe-core: `AXE_CORE` names the file, or it was installed beside the project with npm."""
    named = os.environ.get("AXE_CORE", "")
    places = [Path(named)] if named else [Path(__file__).parents[2] / "node_modules/axe-core/axe.min.js"]
    return next((path.read_text(encoding="utf-8") for path in places if path.is_file()), None)


def violations(page: Page, source: str) -> list[Any]:
    """Run axe-core on the page as it is; what it finds, shortened."""
    # `evaluate` is not bound by the page's policy, which a script element would be.
    page.evaluate(source)
    found = page.evaluate("() => axe.run()")["violations"]
    return [(entry["id"], [node["target"] for node in entry["nodes"]][:3]) for entry in found]
