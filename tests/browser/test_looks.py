"""What the pages look like: no axe-core violation, nothing wider than a phone, and pictures for the docs on request."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import axe_source, violations
from tests.browser.test_console import start_job, wait_moved
from tests.support.flowers import USER, FlowerProcess
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

    from tests.support.consoles import ConsoleWorld

pytestmark = pytest.mark.browser

#: A folder to put screenshots into (``make pictures``).
VARIABLE = "CONSOLE_PICTURES"
PHONE: ViewportSize = {"width": 390, "height": 844}


def visit(page: Page, path: str) -> None:
    page.goto(path)
    page.locator("main[aria-busy=false]").wait_for()
    page.locator("#live[data-state=live]").wait_for()


def every_page(page: Page, world: ConsoleWorld) -> dict[str, str]:
    """Name and path of each page, with a job that has moved something and is paused."""
    page.get_by_role("button", name="Check now").click()
    page.get_by_text("Look at the plan").wait_for()
    job_id = start_job(page)
    wait_moved(page, 1)
    # What is left keeps the fleet uneven for the next test.
    world.rebalancer.pause(job_id)
    plan_id = world.rebalancer.status(job_id).plan_id
    return {
        "fleet": "/",
        "plans": "/plans",
        "plan": f"/plans/{plan_id}",
        "jobs": "/jobs",
        "job": f"/jobs/{job_id}",
        "node": "/nodes/disk1",
    }


def look_closer(page: Page, name: str) -> None:
    """Open what a page shows only when it is asked."""
    if name == "node":
        page.get_by_role("button", name="Check what fits").click()
        page.get_by_text("Fits elsewhere").wait_for()


def test_no_page_has_an_axe_violation_in_either_theme(operator: Page, world: ConsoleWorld) -> None:
    source = axe_source()
    if source is None:
        pytest.skip("axe-core is not here: npm install --no-save axe-core, or AXE_CORE=path/to/axe.min.js")
    found = {}
    for name, path in every_page(operator, world).items():
        for theme in ("light", "dark"):
            operator.emulate_media(color_scheme=theme)
            visit(operator, path)
            look_closer(operator, name)
            found[name, theme] = violations(operator, source)
    operator.context.clear_cookies()
    operator.goto("/")
    found["login", "dark"] = violations(operator, source)
    assert {key: value for key, value in found.items() if value} == {}


def test_no_page_is_wider_than_a_phone(operator: Page, world: ConsoleWorld) -> None:
    paths = every_page(operator, world)
    operator.set_viewport_size(PHONE)
    wide = {}
    for name, path in paths.items():
        visit(operator, path)
        look_closer(operator, name)
        width = operator.evaluate("document.documentElement.scrollWidth")
        if width > PHONE["width"]:
            wide[name] = width
    assert wide == {}


@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no folder")
def test_pictures_are_taken(operator: Page, world: ConsoleWorld) -> None:
    folder = Path(os.environ[VARIABLE])
    for name, path in every_page(operator, world).items():
        for theme in ("light", "dark"):
            operator.emulate_media(color_scheme=theme)
            operator.set_viewport_size({"width": 1200, "height": 1000})
            if name == "job":
                world.rebalancer.resume(path.rsplit("/", 1)[1])
            visit(operator, path)
            look_closer(operator, name)
            operator.screenshot(path=folder / f"console-{name}-{theme}.png")
        operator.set_viewport_size(PHONE)
        visit(operator, path)
        operator.screenshot(path=folder / f"console-{name}-phone.png")


@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no folder")
def test_a_picture_of_flower_is_taken(operator: Page, world: ConsoleWorld, browser: Browser, tmp_path: Path) -> None:
    flower = FlowerProcess(log_path=tmp_path / "flower.log", env=world.env).wait_ready()
    try:
        start_job(operator)
        wait_until(
            lambda: any(task["name"] == "rebalance.monitor" for task in flower.tasks().values()), 60, "a group ends"
        )
        user, password = USER
        context = browser.new_context(
            http_credentials={"username": user, "password": password}, viewport={"width": 1200, "height": 520}
        )
        page = context.new_page()
        page.goto(f"{flower.url}/tasks")
        page.get_by_text("rebalance.migrate").first.wait_for()
        page.screenshot(path=Path(os.environ[VARIABLE]) / "flower.png")
        context.close()
    finally:
        flower.kill()
