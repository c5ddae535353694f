"""The console in a real Chromium: see a fleet, start, watch, pause, resume, cancel, drain; log in, and be refused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import log_in
from tests.support.arena import wait_for
from tests.support.consoles import OPERATOR, VIEWER
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.support.consoles import ConsoleWorld

pytestmark = pytest.mark.browser


def start_job(page: Page) -> str:
    """Make a plan and start it, as an operator would; return the job's id."""
    page.goto("/plans")
    page.get_by_role("button", name="Make a plan").click()
    page.get_by_role("button", name="Start this plan").click()
    page.get_by_role("dialog").get_by_role("button", name="Start").click()
    page.wait_for_url("**/jobs/*")
    page.locator("main[aria-busy=false]").wait_for()
    return page.url.rsplit("/", 1)[1]


def status_is(page: Page, word: str) -> None:
    page.locator(f"h1 .badge[data-word={word}]").wait_for()


def wait_moved(page: Page, moves: int) -> None:
    """Wait until the page shows so many moves done (not in the page: its policy forbids `eval`, also to a test)."""

    def shown() -> int:
        return int(page.get_by_role("progressbar").get_attribute("aria-valuenow") or 0)

    wait_until(lambda: shown() >= moves, 30, f"{moves} moves are done")


def test_a_wrong_token_is_refused_and_the_page_says_so(page: Page) -> None:
    page.goto("/")
    page.get_by_label("Token").fill("wrong-token-wrong-token")
    page.get_by_role("button", name="Log in").click()
    assert page.get_by_role("alert").inner_text() == "this token opens nothing"
    page.goto("/jobs")
    assert page.get_by_label("Token").is_visible()


def test_a_login_leads_to_the_page_that_was_asked_for(page: Page) -> None:
    page.goto("/jobs")
    page.get_by_label("Token").fill(VIEWER)
    page.get_by_role("button", name="Log in").click()
    page.locator("main[aria-busy=false]").wait_for()
    assert page.url.endswith("/jobs")


def test_a_viewer_sees_the_fleet_and_no_button_that_acts(page: Page) -> None:
    log_in(page, VIEWER)
    assert page.locator(".node").count() == 6
    assert page.get_by_role("button", name=re.compile("Check now|Pause|Drain|Start")).count() == 0


def test_markup_in_keys_and_places_stays_text(operator: Page) -> None:
    operator.get_by_role("button", name="Check now").click()
    operator.get_by_text("zone a · rack <b>r1</b>").wait_for()
    assert operator.locator("main b").count() == 0
    operator.goto("/plans")
    operator.get_by_role("button", name="Make a plan").click()
    operator.get_by_label("Object key").fill("odd/<img src=x onerror=alert(1)>.bin")
    operator.get_by_role("button", name="Explain").click()
    operator.locator(".note strong").filter(has_text="<img src=x").wait_for()
    assert operator.locator("main img").count() == 0


def test_a_job_is_started_watched_paused_resumed_and_cancelled(operator: Page, world: ConsoleWorld) -> None:
    job_id = start_job(operator)
    status_is(operator, "running")
    wait_moved(operator, 1)
    operator.get_by_role("button", name="Pause").click()
    status_is(operator, "paused")
    assert world.rebalancer.status(job_id).paused_reasons == ("operator",)
    operator.get_by_role("button", name="Resume").click()
    status_is(operator, "running")
    operator.get_by_role("button", name="Cancel").click()
    operator.get_by_role("dialog").get_by_role("button", name="Go back").click()
    assert not world.rebalancer.status(job_id).cancel_requested
    operator.get_by_role("button", name="Cancel").click()
    operator.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    status_is(operator, "cancelled")
    # The timeline is fetched once the page has heard of an event, so it may come after the badge.
    for word in ("created", "started", "paused", "resumed", "cancel_requested", "cancelled"):
        operator.locator(f".events .badge[data-word={word}]").wait_for()


def test_the_fleet_follows_a_job_without_a_reload(operator: Page, world: ConsoleWorld) -> None:
    job_id = start_job(operator)
    operator.goto("/")
    shares = operator.locator(".node .share")
    before = shares.all_inner_texts()
    wait_until(lambda: shares.all_inner_texts() != before, 60, "the bars follow the job")
    world.rebalancer.cancel(job_id)
    wait_for(world.rebalancer, job_id)
    # Exactly: the reason of a check in mode observe ends with these words too.
    operator.get_by_text("nothing moves", exact=True).wait_for()


def test_a_node_is_drained_after_a_look_at_what_fits(operator: Page, world: ConsoleWorld) -> None:
    operator.get_by_role("link", name="disk5").click()
    operator.get_by_role("button", name="Check what fits").click()
    operator.get_by_text("Everything on this node finds a place elsewhere.").wait_for()
    operator.get_by_role("button", name="Drain the node").click()
    operator.get_by_role("dialog").get_by_role("button", name="Drain the node").click()
    operator.locator("h1 .badge[data-word=draining]").wait_for()
    operator.get_by_role("button", name="Activate").click()
    operator.locator("h1 .badge[data-word=active]").wait_for()
    assert all(node.state.value == "active" for node in [report.node for report in world.rebalancer.glances()])


def test_the_keyboard_alone_reaches_a_decision(operator: Page) -> None:
    operator.keyboard.press("Tab")
    assert operator.evaluate("document.activeElement.textContent") == "Skip to content"
    operator.get_by_role("button", name="Pause the fleet").focus()
    operator.keyboard.press("Enter")
    # The safe answer has the focus; Escape is one as well.
    assert operator.evaluate("document.activeElement.textContent") == "Go back"
    operator.keyboard.press("Escape")
    assert operator.get_by_role("dialog").count() == 0
    assert operator.get_by_role("button", name="Pause the fleet").is_visible()


def test_logging_out_closes_the_door(operator: Page) -> None:
    operator.get_by_role("button", name="Log out").click()
    operator.get_by_label("Token").wait_for()
    log_in(operator, OPERATOR)
