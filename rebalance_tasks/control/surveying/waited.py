"""A survey that somebody waits for: each node as the hosts see it that reach it, where there are workers to ask, else as it is seen from here.

check or plan by hand ─▶ **seen** ── messages on the nodes' queues ─▶ survey_nodes, on workers ─▶ findings in Redis ─▶ goes on here

Who waits holds the check's lock, so there is one survey at a time, and concludes it himself; should he die, the lock runs out as that
of any check that was killed. A node whose queue nobody serves, or that does not answer, is left out whole, and the survey says so.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rebalance_tasks.control.survey import Survey, reports, require_whole, survey
from rebalance_tasks.control.surveying.merge import merged, merged_reports
from rebalance_tasks.control.surveying.parts import node_of
from rebalance_tasks.control.surveying.question import KeysUnmet
from rebalance_tasks.control.surveying.round import CHECK_LOCK_MS, ask_again, begin, by_tasks, keep_ms, leave_out
from rebalance_tasks.core.errors import NodeError, RetryableError
from rebalance_tasks.core.routes import first_served, queues_reaching
from rebalance_tasks.store.surveys import Asked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.control.survey import NodeReport
    from rebalance_tasks.store.surveys import OpenSurvey

#: Nothing was claimed, renewed or handed in for so long: what is awaited then does not come while somebody waits.
PATIENCE_MS: Final = 60_000
_LOOK_EVERY_S: Final = 0.1


def seen(context: FleetContext, token: int, *, whole: bool = False) -> Survey:
    """Return the fleet as its workers see it, or as this process does where there are none to ask.

    Args:
        context: the fleet.
        token: of the check whose lock the caller holds.
        whole: every object is to be a row, as far as that fits.

    Raises:
        RetryableError: the lock was lost meanwhile.
        NodeError: fewer than two nodes could be surveyed.
        ConfigurationError: roots coincide, or a capacity must be stated.
    """
    if not _asks_workers(context):
        return survey(context, leave_out=True)
    with _looked_at(context, token, Asked(waits=True, whole=whole)):
        if whole or not any(finding.others_apart for finding in context.surveys.findings()):
            return merged(context, whole=whole)
        return _answered(context, token)


@contextmanager
def _looked_at(context: FleetContext, token: int, asked: Asked) -> Iterator[None]:
    """Have every node looked at, and end that survey afterwards."""
    begin(context, token, asked)
    try:
        _conclude(context, token)
        yield
    finally:
        context.surveys.close(token, keep_ms=keep_ms(context))


def _conclude(context: FleetContext, token: int) -> None:
    """Wait until all that is awaited is in, and be the one who goes on."""
    _leave_out_unserved(context, token)
    _wait(context, token)
    if not context.surveys.conclude(token, lock_ms=CHECK_LOCK_MS):
        msg = "another check has taken over while the nodes were looked at; try again"
        raise RetryableError(msg)


def _answered(context: FleetContext, token: int) -> Survey:
    """Have the nodes that keep hashes apart say which candidates they hold as well; answers go when the survey ends, so they are read now."""
    found = merged(context)
    try:
        _ = found.inventory
    except KeysUnmet as unmet:
        ask_again(context, token, unmet)
        _conclude(context, token)
        found = merged(context)
        _ = found.inventory
    return found


def seen_alone(context: FleetContext, *, whole: bool = False) -> Survey:
    """As `seen`, for a caller that holds no lock and needs none afterwards. Raises: as `seen`, and RetryableError while a check runs."""
    if not _asks_workers(context):
        return survey(context, leave_out=True)
    with _own_lock(context) as token:
        if token is None:
            msg = "a check of this fleet is running, or was killed less than 10 minutes ago; try again when it is over"
            raise RetryableError(msg)
        found = seen(context, token, whole=whole)
        # Read now: the next survey replaces what the workers handed in.
        _ = found.inventory
    return found


def all_seen(context: FleetContext, *, whole: bool = True) -> Survey:
    """Return the fleet with every node that is not in maintenance, as the workers see it where only they reach some.

    Args:
        context: the fleet.
        whole: every object must be a row.

    Raises:
        NodeError: a node cannot be surveyed.
        ConfigurationError: roots coincide, a capacity must be stated, or there are too many objects to be ``whole``.
        RetryableError: a check runs.
    """
    if not any(node.queues for node in context.nodes()) or not _asks_workers(context):
        return survey(context, whole=whole)
    found = seen_alone(context, whole=whole)
    for node_id, why in found.left_out.items():
        raise NodeError(node_id, f"it could not be surveyed: {why}")
    if whole:
        require_whole(found.inventory)
    return found


def reported(context: FleetContext) -> list[NodeReport]:
    """Report on every node as its workers see it; as this process does where there are none to ask, or while a check has them look."""
    if not _asks_workers(context):
        return reports(context)
    with _own_lock(context) as token:
        if token is None:
            return reports(context)
        with _looked_at(context, token, Asked(waits=True)):
            return merged_reports(context)


@contextmanager
def _own_lock(context: FleetContext) -> Iterator[int | None]:
    """Hold the lock of a check, so that no other survey begins; None while a check holds it."""
    token = context.fleet.acquire_check(ttl_ms=CHECK_LOCK_MS)
    try:
        yield token
    finally:
        if token is not None:
            context.fleet.release_check(token)


def _asks_workers(context: FleetContext) -> bool:
    """Whether tasks list this fleet's nodes, and all workers there are say what they serve."""
    return by_tasks(context) and context.presence.served(now_ms=context.connection.now_ms()) is not None


def _leave_out_unserved(context: FleetContext, token: int) -> None:
    survey, served = context.surveys.current(), context.presence.served(now_ms=context.connection.now_ms())
    for name in sorted(survey.awaited if survey is not None else ()):
        queues = queues_reaching(context.settings.node(node_of(name)))
        if first_served(queues, served) is None:
            why = f"nobody serves {' or '.join(queues)}, whose hosts reach it; start a worker there (`rebalance nodes` says who serves what)"
            leave_out(context, token, name, f"{node_of(name)}: {why}")


def _wait(context: FleetContext, token: int) -> None:
    """Wait until every node is in, was left out, or the lock is lost."""
    while (survey := context.surveys.current()) is not None and _awaits(survey, token):
        if context.connection.now_ms() - survey.moved_ms > PATIENCE_MS:
            for name in sorted(survey.awaited):
                why = f"no answer within {PATIENCE_MS // 1000} s; is its worker busy or stuck (`rebalance doctor`)?"
                leave_out(context, token, name, f"{node_of(name)}: {why}")
        time.sleep(_LOOK_EVERY_S)


def _awaits(survey: OpenSurvey, token: int) -> bool:
    return survey.token == token and survey.held and bool(survey.awaited)
