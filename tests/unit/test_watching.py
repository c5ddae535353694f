"""The live view: keys ask before they act, nothing is markup, the terminal is left as it was."""

from __future__ import annotations

import io
import os
import pty
import sys
import termios
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rebalance_tasks.cli import keys, watching
from rebalance_tasks.cli.watching import VERBS, Steering, View, sparkline
from rebalance_tasks.core.models import ControlResult, FailureGroup, RebalanceJob
from rebalance_tasks.core.states import RebalanceStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW: Final = "2026-01-31T12:00:00+00:00"


def job(**more: Any) -> RebalanceJob:
    fields = {
        "job_id": "j1",
        "plan_id": "p1",
        "fleet": "f",
        "status": "running",
        "created_utc": NOW,
        "total_moves": 10,
        "completed_moves": 5,
        "total_bytes": 2_000_000,
        "bytes_moved": 1_000_000,
        "throughput": 500_000.0,
        "groups_total": 2,
        "groups_done": 1,
        "imbalance_before": 0.5,
    }
    return RebalanceJob.model_validate({**fields, **more})


def shown(view: View, seen: RebalanceJob, steering: Steering | None = None) -> str:
    out = Console(width=120, record=True, file=io.StringIO())
    out.print(view.render(seen, (steering or Steering("j1")).line()))
    return out.export_text()


@given(st.lists(st.sampled_from(["p", "r", "c", "y", "n", "q", "x", ""]), max_size=12))
def test_a_verb_is_carried_out_only_by_a_yes_right_after_its_key(pressed: list[str]) -> None:
    steering = Steering("j1")
    before = ""
    for key in pressed:
        verb = steering.press(key)
        assert (verb != "") == (key == "y" and before in VERBS)
        if verb:
            assert verb == VERBS[before]
        if key:
            # A key that answers a question asks nothing itself.
            before = key if before not in VERBS else ""


def test_the_view_shows_progress_rate_failures_and_holds() -> None:
    view = View()
    seen = job(failed_moves=2, held_groups={"node:n2": 3}, paused_reasons=("operator",), eta=90.0)
    asked: list[int] = []

    def failures() -> list[FailureGroup]:
        asked.append(1)
        return [FailureGroup(cause="target_full", moves=2, hint="make [red]room[/red]")]

    for _ in range(5):
        view.look(seen, failures)
    text = shown(view, seen)
    for words in (
        "7 of 10",
        "50",
        "5 completed, 2 failed",
        "3 groups wait for node:n2",
        "held by operator",
        "target_full",
    ):
        assert words in text
    assert "[red]room[/red]" in text, "what a worker wrote is text, not markup"
    assert len(asked) == 1, "failures are asked for when there are others"


def test_the_view_of_a_job_with_nothing_to_do_is_full() -> None:
    assert "100" in shown(View(), job(total_moves=0, completed_moves=0, total_bytes=0, bytes_moved=0, groups_total=0))


@given(st.lists(st.floats(0, 1e12), max_size=80))
def test_a_sparkline_has_a_block_for_each_value_and_the_highest_is_full(values: list[float]) -> None:
    drawn = sparkline(values)
    assert len(drawn) == len(values)
    if max(values, default=0) > 0:
        assert drawn[values.index(max(values))] == "█"


class Steered:
    """A client whose job ends when it is cancelled."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def status(self, job_id: str) -> RebalanceJob:
        ended = {"status": "cancelled", "completed_utc": NOW} if "cancel" in self.calls else {}
        return job(job_id=job_id, **ended)

    def failures(self, _: str) -> list[FailureGroup]:
        return []

    def _do(self, verb: str, job_id: str) -> ControlResult:
        self.calls.append(verb)
        return ControlResult(job_id=job_id, status=RebalanceStatus.RUNNING)

    def pause(self, job_id: str) -> ControlResult:
        return self._do("pause", job_id)

    def resume(self, job_id: str) -> ControlResult:
        return self._do("resume", job_id)

    def cancel(self, job_id: str) -> ControlResult:
        return self._do("cancel", job_id)


@contextmanager
def terminal() -> Iterator[int]:
    """A pseudo-terminal as standard input and output; yields its other end."""
    ours, theirs = pty.openpty()
    with (
        os.fdopen(theirs, "r") as stdin,
        os.fdopen(os.dup(theirs), "w") as stdout,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "stdout", stdout)
        patch.setenv("TERM", "xterm-256color")
        yield ours
    os.close(ours)


def test_keys_steer_the_job_on_a_real_terminal_and_leave_it_as_it_was() -> None:
    with terminal() as ours:
        before = termios.tcgetattr(sys.stdin.fileno())
        client = Steered()
        answers = iter(["p", "n", "p", "y", "r", "y", "c", "y"])

        def typed(_: float) -> str:
            drain(ours)  # or the view blocks on a full terminal
            return next(answers)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watching, "pressed_keys", lambda: nullcontext(typed))
            ended = watching.follow(client, "j1")  # type: ignore[arg-type]
        assert ended.status is RebalanceStatus.CANCELLED
        assert client.calls == ["pause", "resume", "cancel"]
        with keys.pressed_keys() as key:
            os.write(ours, b"p")
            assert key(5.0) == "p"
        assert termios.tcgetattr(sys.stdin.fileno()) == before
        drain(ours)


def drain(terminal: int) -> None:
    """Read what was drawn."""
    os.set_blocking(terminal, False)
    with suppress(BlockingIOError):
        while os.read(terminal, 65536):
            pass


def test_without_a_terminal_no_key_is_read() -> None:
    with keys.pressed_keys() as key:
        assert key(0.0) == ""
