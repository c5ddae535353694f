"""The HTTP API: every endpoint, what it takes, what it answers (docs/reference/http-api.md lists them; a test compares).

Handlers are plain functions that run in a thread; they call the client's verbs and shape what comes back. Errors are
`RebalanceError`s, which `app` turns into a status and ``{"error": …, "cause": …}``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field

from rebalance_tasks.cli.output import jsonable
from rebalance_tasks.console import shapes
from rebalance_tasks.console.calls import Call, Page, Refused, act, read
from rebalance_tasks.console.timeline import timeline as story
from rebalance_tasks.core.errors import UnknownNode
from rebalance_tasks.core.explain import explain_object
from rebalance_tasks.core.models import Frozen, Identifier, KeyText

if TYPE_CHECKING:
    from rebalance_tasks.console.calls import Endpoint
    from rebalance_tasks.control.drain import StateChange
    from rebalance_tasks.control.overview import NodeOverview
    from rebalance_tasks.core.models import ControlResult, RebalanceMove


#: All that a fleet's history keeps.
_HISTORY: Final = 10_000
#: Of an explanation, as ``rebalance plan --explain KEY --json`` prints it.
EXPLAINED: Final = ("object_key", "node_id", "moves", "target_node", "code", "sentence", "details")


class NodesQuery(Page):
    """Which nodes, in which order."""

    q: str = Field(default="", max_length=128)
    sort: Literal["place", "fullest", "emptiest", "name"] = "place"


class MovesQuery(Page):
    """Which moves of a plan."""

    q: str = Field(default="", max_length=1024)
    source: str = Field(default="", max_length=128)
    target: str = Field(default="", max_length=128)


class KeyQuery(Frozen):
    """One object."""

    key: KeyText


class CheckBody(Frozen):
    """How to check."""

    force: bool = False


class StartBody(Frozen):
    """What to start."""

    plan_id: Identifier


class RetryBody(Frozen):
    """What to retry."""

    skipped: bool = False


class StateBody(Frozen):
    """How to drain or activate."""

    force: bool = False


# -- fleet and nodes ---------------------------------------------------------------------------------------------------
def fleet(call: Call) -> object:
    """The fleet in numbers: mode, imbalance and threshold, usage and its histogram, node states, active job, what pauses it."""
    return shapes.fleet_json(call.watcher.overview(), call.client.settings)


def nodes(call: Call) -> object:
    """Nodes with place, state, health and utilisation; `q` looks in ids and places, `sort` is place, fullest, emptiest or name."""
    query = call.arguments(NodesQuery)
    found = [entry for entry in call.watcher.overview().nodes if _matches(entry, query.q.casefold())]
    orders: dict[str, Any] = {
        "place": lambda entry: (entry.node.pool, entry.node.zone, entry.node.rack, entry.node.node_id),
        "fullest": lambda entry: (-(entry.utilisation or 0.0), entry.node.node_id),
        "emptiest": lambda entry: (entry.utilisation or 0.0, entry.node.node_id),
        "name": lambda entry: entry.node.node_id,
    }
    return query.cut(sorted(found, key=orders[query.sort]), shapes.node_json)


def _matches(entry: NodeOverview, text: str) -> bool:
    node = entry.node
    places = (node.node_id, node.pool, node.zone, node.rack, node.host, node.region, node.state.value, entry.status)
    return any(text in place.casefold() for place in places)


def node(call: Call) -> object:
    """One node."""
    return shapes.node_json(_node(call))


def _node(call: Call) -> NodeOverview:
    for entry in call.watcher.overview().nodes:
        if entry.node.node_id == call.name:
            return entry
    raise UnknownNode(call.name)


def drain_check(call: Call) -> object:
    """What draining a node would come to: what fits elsewhere, what does not and why; surveys the fleet, changes nothing."""
    return _change(call.client.drain(call.name, dry_run=True))


def drain(call: Call) -> object:
    """Drain a node; 409 when something will not fit, unless `force`."""
    change = call.client.drain(call.name, force=call.arguments(StateBody).force)
    if change.reason:
        msg = f"node {call.name} is left {change.state.value}: not everything fits elsewhere; force drains what does"
        raise Refused(msg)
    return _change(change)


def activation_check(call: Call) -> object:
    """What activating a node would come to: what it can hold, what of it fits nowhere and why; surveys the fleet, changes nothing."""
    return _change(call.client.activate(call.name, dry_run=True))


def activate(call: Call) -> object:
    """Let a node give and take again: ends a drain or maintenance; 409 when what it holds fits nowhere, unless `force`."""
    change = call.client.activate(call.name, force=call.arguments(StateBody).force)
    if change.reason:
        msg = f"node {call.name} is left {change.state.value}: what it holds fits neither there nor elsewhere; force activates it"
        raise Refused(msg)
    return _change(change)


def maintenance(call: Call) -> object:
    """Leave a node alone: it neither gives nor takes."""
    return _change(call.client.maintenance(call.name))


def _change(change: StateChange[Any]) -> object:
    return {**jsonable(change), "fits": change.fits}


def pause_node(call: Call) -> object:
    """Hold a node: its groups stop and wait, others go on."""
    return _controlled(call.client.pause_node(call.name))


def resume_node(call: Call) -> object:
    """Let go of a node that was paused."""
    return _controlled(call.client.resume_node(call.name))


def pause_fleet(call: Call) -> object:
    """Pause the fleet: its active job, and every check and job to come."""
    return _controlled(call.client.pause_all())


def resume_fleet(call: Call) -> object:
    """Lift the pause of the fleet."""
    return _controlled(call.client.resume_all())


def _controlled(result: ControlResult) -> object:
    if result.reason:
        raise Refused(result.reason)
    return jsonable(result)


# -- checks and plans --------------------------------------------------------------------------------------------------
def checks(call: Call) -> object:
    """What the last 200 checks decided and the imbalance they saw, newest first."""
    return call.arguments(Page).cut(call.client.checks(200), jsonable)


def check(call: Call) -> object:
    """Check the fleet now, as beat does; `force` plans even under the threshold."""
    return jsonable(call.client.check(force=call.arguments(CheckBody).force))


def plans(call: Call) -> object:
    """The newest 20 plans, without their moves."""
    found = [facts for plan_id in call.client.plans(20) if (facts := call.shelf.facts(plan_id)) is not None]
    return call.arguments(Page).cut(found, jsonable)


def make_plan(call: Call) -> object:
    """Survey the fleet and plan; nothing moves until the plan is started."""
    return shapes.plan_json(call.client.plan(), call.client.settings.options)


def plan(call: Call) -> object:
    """One plan: spread before and after, cost, budgets, flows between nodes, and what is not moved by reason."""
    return shapes.plan_json(call.shelf.plan(call.name), call.client.settings.options)


def moves(call: Call) -> object:
    """Moves of a plan in their order; `q` looks in keys, `source` and `target` name nodes."""
    query = call.arguments(MovesQuery)
    found = [move for move in call.shelf.plan(call.name).moves if _chosen(move, query)]
    return query.cut(found, shapes.move_json)


def _chosen(move: RebalanceMove, query: MovesQuery) -> bool:
    return (
        query.q.casefold() in move.object_key.casefold()
        and query.source in {"", move.source_node}
        and query.target in {"", move.target_node}
    )


def explain(call: Call) -> object:
    """Why an object moves by this plan, or why it stays; surveys the fleet."""
    made, seen = call.shelf.plan(call.name), call.client.survey()
    settings = call.client.settings
    prices = settings.price_matrix
    key = call.arguments(KeyQuery).key
    found = explain_object(
        made, key, seen.nodes, seen.inventory, options=settings.options, now=made.created_utc, prices=prices
    )
    return {name: jsonable(getattr(found, name)) for name in EXPLAINED}


# -- jobs --------------------------------------------------------------------------------------------------------------
def jobs(call: Call) -> object:
    """Jobs, newest first."""
    return call.arguments(Page).cut(call.client.jobs(), shapes.job_json)


def start(call: Call) -> object:
    """Start a plan; asked twice, it is one job."""
    job = call.client.start(call.arguments(StartBody).plan_id)
    call.watcher.follow(job.job_id)
    return shapes.job_json(job)


def job(call: Call) -> object:
    """One job: status, counts, bytes, rate, ETA, spread before and after, what pauses it."""
    return shapes.job_json(call.client.status(call.name))


def failures(call: Call) -> object:
    """Failed and skipped moves of a job by cause, each with an example and the way out."""
    return {"items": jsonable(call.client.failures(call.name))}


def timeline(call: Call) -> object:
    """What happened to a job and who asked for it, oldest first: from the fleet's history, and the job's own times."""
    job = call.client.status(call.name)
    # An event's id begins with its time, so that older ones need not be read.
    begun = f"{int(job.created_utc.timestamp() * 1000) - 1}-0"
    return {"items": jsonable(story(job, call.client.events_after(begun, limit=_HISTORY, job_id=job.job_id)))}


def pause(call: Call) -> object:
    """Pause a job: no byte moves once its runners have seen it, within 100 ms."""
    return _controlled(call.client.pause(call.name))


def resume(call: Call) -> object:
    """Lift the operator's pause of a job."""
    return _controlled(call.client.resume(call.name))


def cancel(call: Call) -> object:
    """Cancel a job: what was published is finished, the rest is undone or skipped."""
    return _controlled(call.client.cancel(call.name))


def retry(call: Call) -> object:
    """Start the failed moves of an ended job again, as a job of their own; `skipped` takes those that pass as well."""
    job = call.client.retry_failed(call.name, skipped=call.arguments(RetryBody).skipped)
    call.watcher.follow(job.job_id)
    return shapes.job_json(job)


#: Every endpoint but the stream of events, which `app` serves itself.
ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    read("/fleet", fleet),
    act("/fleet/pause", pause_fleet),
    act("/fleet/resume", resume_fleet),
    read("/nodes", nodes, NodesQuery),
    read("/nodes/{name}", node),
    read("/nodes/{name}/drain-check", drain_check),
    act("/nodes/{name}/drain", drain, StateBody),
    read("/nodes/{name}/activation-check", activation_check),
    act("/nodes/{name}/activate", activate, StateBody),
    act("/nodes/{name}/maintenance", maintenance),
    act("/nodes/{name}/pause", pause_node),
    act("/nodes/{name}/resume", resume_node),
    read("/checks", checks, Page),
    act("/checks", check, CheckBody),
    read("/plans", plans, Page),
    act("/plans", make_plan),
    read("/plans/{name}", plan),
    read("/plans/{name}/moves", moves, MovesQuery),
    read("/plans/{name}/explain", explain, KeyQuery),
    read("/jobs", jobs, Page),
    act("/jobs", start, StartBody),
    read("/jobs/{name}", job),
    read("/jobs/{name}/failures", failures),
    read("/jobs/{name}/timeline", timeline),
    act("/jobs/{name}/pause", pause),
    act("/jobs/{name}/resume", resume),
    act("/jobs/{name}/cancel", cancel),
    act("/jobs/{name}/retry", retry, RetryBody),
)
