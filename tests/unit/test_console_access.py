"""Tokens, sessions, patience with guesses, where a console may listen, and what happened between two looks at a job."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks import Rebalancer, Settings
from rebalance_tasks.cli.app import run
from rebalance_tasks.cli.output import EXIT_USAGE
from rebalance_tasks.console import access
from rebalance_tasks.console.access import Attempts, Role, Sessions, Tokens, load_tokens
from rebalance_tasks.console.server import is_loopback, usable_tokens
from rebalance_tasks.console.shapes import BARS, histogram
from rebalance_tasks.console.timeline import entry_of, timeline
from rebalance_tasks.core.errors import ConfigurationError, InvalidArgument
from rebalance_tasks.core.events import Event, EventKind
from rebalance_tasks.core.models import RebalanceJob
from rebalance_tasks.core.states import RebalanceStatus

if TYPE_CHECKING:
    from pathlib import Path

VIEWER, OPERATOR = "v" * 20, "o" * 20
TOKENS = Tokens(viewer=VIEWER, operator=OPERATOR)
NOW = datetime(2026, 11, 27, tzinfo=UTC)


@given(st.text())
def test_only_the_exact_token_opens(text: str) -> None:
    expected = {VIEWER: Role.VIEWER, OPERATOR: Role.OPERATOR}.get(text)
    assert TOKENS.role_of(text) is expected


def test_a_token_that_is_not_set_opens_nothing() -> None:
    assert Tokens().role_of("") is None
    assert Tokens(viewer=VIEWER).role_of("") is None


def test_tokens_never_show() -> None:
    assert VIEWER not in repr(TOKENS)
    assert OPERATOR not in str(TOKENS)
    session = Sessions().open(Role.VIEWER, now=0)
    assert session.session_id not in repr(session)
    assert session.csrf not in repr(session)


def test_a_token_is_read_from_a_file_without_its_line_end(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{OPERATOR}\n")
    tokens = load_tokens({"REBALANCE_CONSOLE_OPERATOR_TOKEN_FILE": str(file)})
    assert tokens.role_of(OPERATOR) is Role.OPERATOR


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"REBALANCE_CONSOLE_VIEWER_TOKEN": "short"}, "has 5 characters and needs 16"),
        ({"REBALANCE_CONSOLE_VIEWER_TOKEN": VIEWER, "REBALANCE_CONSOLE_OPERATOR_TOKEN": VIEWER}, "are the same"),
        ({"REBALANCE_CONSOLE_VIEWER_TOKEN": VIEWER, "REBALANCE_CONSOLE_VIEWER_TOKEN_FILE": "x"}, "are both set"),
        ({"REBALANCE_CONSOLE_VIEWER_TOKEN_FILE": "/nowhere/token"}, "cannot be read: No such file"),
        ({"REBALANCE_CONSOLE_VIEWER_TOKEN_FILE": "/dev/null"}, "has 0 characters"),
    ],
)
def test_a_bad_token_is_named_without_being_shown(environ: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        load_tokens(environ)
    assert VIEWER not in str(caught.value)


def test_a_session_ends_at_its_time_and_when_it_is_closed() -> None:
    sessions = Sessions()
    session = sessions.open(Role.VIEWER, now=0)
    assert sessions.find(session.session_id, now=access.SESSION_S - 1) is session
    assert sessions.find(session.session_id, now=access.SESSION_S) is None
    other = sessions.open(Role.VIEWER, now=0)
    sessions.close(other.session_id)
    assert sessions.find(other.session_id, now=0) is None


def test_sessions_are_bounded_and_the_oldest_goes() -> None:
    sessions = Sessions()
    opened = [sessions.open(Role.VIEWER, now=0) for _ in range(access.MOST_SESSIONS + 1)]
    assert sessions.find(opened[0].session_id, now=1) is None
    assert sessions.find(opened[1].session_id, now=1) is not None


def test_whoever_guesses_waits_and_others_do_not() -> None:
    attempts = Attempts()
    for second in range(access.MOST_ATTEMPTS):
        assert attempts.wait_s("here", now=second) == 0
        attempts.note("here", now=second)
    assert attempts.wait_s("here", now=10) == access.ATTEMPTS_S - 10
    assert attempts.wait_s("there", now=10) == 0
    assert attempts.wait_s("here", now=access.ATTEMPTS_S) == 0


def test_viewers_may_not_what_operators_may() -> None:
    assert Role.OPERATOR.includes(Role.VIEWER)
    assert Role.OPERATOR.includes(Role.OPERATOR)
    assert Role.VIEWER.includes(Role.VIEWER)
    assert not Role.VIEWER.includes(Role.OPERATOR)


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("nas", False)],  # noqa: S104
)
def test_only_loopback_may_go_without_a_token(host: str, inside: bool) -> None:
    assert is_loopback(host) is inside
    if inside:
        tokens, made = usable_tokens(Tokens(), host, may_show=True)
        assert tokens.role_of(made) is Role.OPERATOR
    else:
        with pytest.raises(ConfigurationError, match="a token is needed"):
            usable_tokens(Tokens(), host, may_show=True)
    assert usable_tokens(TOKENS, host, may_show=False) == (TOKENS, "")


def test_a_made_token_is_never_written_to_a_log() -> None:
    with pytest.raises(ConfigurationError, match="could only be shown on a terminal"):
        usable_tokens(Tokens(), "127.0.0.1", may_show=False)


Captured = pytest.CaptureFixture[str]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration and no token."""
    for name in [name for name in os.environ if name.startswith("REBALANCE_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("arguments", [["--host", "0.0.0.0"], []])  # noqa: S104
def test_the_command_refuses_to_serve_without_a_token(bare: None, capsys: Captured, arguments: list[str]) -> None:
    assert run(["console", *arguments]) == EXIT_USAGE
    assert "REBALANCE_CONSOLE_OPERATOR_TOKEN" in capsys.readouterr().err


def test_without_the_extra_the_command_says_what_to_install(
    bare: None, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "rebalance_tasks.console.server", raising=False)
    monkeypatch.delattr("rebalance_tasks.console.server", raising=False)
    assert run(["console"]) == EXIT_USAGE
    told = capsys.readouterr().err
    assert "uvicorn" in told
    assert "rebalance-tasks[console]" in told


# -- timeline --------------------------------------------------------------------------------------------------------
def job(**fields: Any) -> RebalanceJob:
    base = {"job_id": "j", "plan_id": "p", "status": RebalanceStatus.RUNNING, "created_utc": NOW, "total_moves": 3}
    return RebalanceJob.model_validate({**base, **fields})


def event(kind: EventKind, second: int, **data: Any) -> Event:
    at = NOW + timedelta(seconds=second)
    number = f"{int(at.timestamp() * 1000)}-0"
    return Event(event_id=number, at=at, kind=kind, fleet="f", job_id="j", by="console:operator@10.0.0.5", data=data)


def test_a_timeline_says_who_asked_and_ends_with_the_outcome() -> None:
    ended = job(
        status=RebalanceStatus.COMPLETED,
        requested_by="me@here",
        started_utc=NOW + timedelta(seconds=1),
        completed_utc=NOW + timedelta(seconds=9),
    )
    history = [
        event(EventKind.JOB_STARTED, 0, moves=3, groups=1),
        event(EventKind.JOB_PAUSED, 2, reason="operator"),
        event(EventKind.JOB_RESUMED, 3, reason="operator"),
        event(EventKind.JOB_COMPLETED, 9, completed=3, failed=0, skipped=0),
    ]
    told = [(entry.what, entry.text) for entry in timeline(ended, history)]
    assert told == [
        ("created", "asked for by console:operator@10.0.0.5: 3 moves in 1 groups"),
        ("started", "the first group was let in"),
        ("paused", "held for operator, by console:operator@10.0.0.5"),
        ("resumed", "goes on: operator was lifted by console:operator@10.0.0.5"),
        ("completed", "3 moved, 0 failed, 0 skipped"),
    ]


def test_a_job_that_outlived_its_history_still_has_a_timeline() -> None:
    failed = job(status=RebalanceStatus.FAILED, completed_utc=NOW + timedelta(seconds=9), failed_moves=3, error="broke")
    assert [(entry.what, entry.text) for entry in timeline(failed, [])] == [
        ("created", "asked for by somebody: 3 moves in 0 groups"),
        ("failed", "0 moved, 3 failed, 0 skipped; broke"),
    ]


@pytest.mark.parametrize("kind", [kind for kind in EventKind if kind.value.startswith("job.")])
def test_every_event_of_a_job_has_a_sentence_even_without_its_data(kind: EventKind) -> None:
    entry = entry_of(event(kind, 0))
    assert entry is not None
    assert entry.text


def test_what_a_newer_release_notes_is_left_out() -> None:
    assert entry_of(event(EventKind.CHECKED, 0).model_copy(update={"kind": "job.teleported"})) is None


@pytest.mark.parametrize("who", ["", "a\nb", "x" * 129])
def test_who_acts_is_a_name_or_refused(who: str) -> None:
    with pytest.raises(InvalidArgument, match="printable"):
        Rebalancer(Settings()).acting_as(who)


@given(st.lists(st.one_of(st.none(), st.floats(0, 3))))
def test_each_node_of_known_capacity_stands_in_one_bar(shares: list[float | None]) -> None:
    bars = histogram(shares)
    known = [share for share in shares if share is not None]
    assert (len(bars), sum(bars)) == (BARS, len(known))
    for number, count in enumerate(bars[:-1]):
        assert count == sum(number <= share * BARS < number + 1 for share in known)
