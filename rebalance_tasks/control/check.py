"""The check: is the fleet out of balance, and what would restore it? One at a time, fenced, always with a reason.

beat ─▶ **check** ── survey ▸ imbalance ▸ plan ──▶ Redis ── observe stops here; auto asks for a start
"""

# ruff: noqa: EM101, TRY301  a verdict is a word and a sentence, raised where it becomes clear
from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import xxhash

from rebalance_tasks.control.carrying import with_losses
from rebalance_tasks.control.check_trace import Trace
from rebalance_tasks.control.standing import basis_of, note, standing
from rebalance_tasks.control.start import nearby
from rebalance_tasks.control.survey import Survey, adopt, survey
from rebalance_tasks.control.surveying import round as survey_round
from rebalance_tasks.control.surveying import waited as survey_waited
from rebalance_tasks.control.surveying.merge import merged
from rebalance_tasks.control.surveying.question import KeysUnmet
from rebalance_tasks.core.errors import ConfigurationError, InvalidInventory, JobActive, NodeError, StaleLease
from rebalance_tasks.core.imbalance import imbalance, is_eligible
from rebalance_tasks.core.models import CheckResult, NodeState
from rebalance_tasks.core.planner import plan_rebalance
from rebalance_tasks.core.quiet_hours import in_quiet_hours
from rebalance_tasks.core.verify import verify_plan
from rebalance_tasks.store.records import CheckRecord
from rebalance_tasks.store.surveys import Asked

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import NodeDescriptor, RebalancePlan

#: A balanced fleet needs somebody to give and somebody to take.
MIN_NODES: Final = 2
NANO: Final = 10**9


class Skipped(Exception):
    """The check stops here, for this reason."""

    def __init__(self, word: str, sentence: str, spread: float | None = None) -> None:
        """Give the stable word and the sentence."""
        super().__init__(f"{word}: {sentence}")
        self.spread = spread


def run_check(
    context: FleetContext, *, force: bool = False, by: str = "", by_tasks: bool = False, waits: bool = False
) -> CheckResult:
    """Check the fleet once and record what came of it.

    Args:
        context: the fleet.
        force: plan even under the threshold.
        by: who asks.
        by_tasks: in a fleet where tasks are to list the nodes, begin that and return; `conclude_check` goes on.
        waits: in such a fleet wait for them, where there are workers (`surveying.waited`).

    Returns:
        verdict ``skipped``, ``planned`` (observe mode), ``started`` (auto mode: a start was asked for) or ``surveying``.
    """
    run = _Run(context, force=force, by=by)
    try:
        _before_lock(context)
        run.token = context.fleet.acquire_check(ttl_ms=survey_round.CHECK_LOCK_MS)
        if run.token is None:
            raise Skipped("already_running", "another check of this fleet is running")
        starting = context.fleet.starting()
        if starting is not None and not context.jobs.exists(starting):
            raise Skipped("already_running", f"job {starting} is being started")
        if by_tasks and survey_round.by_tasks(context):
            return _surveying(context, run.token, force=force, by=by)
    except Skipped as exc:
        return run.ended(exc)
    except BaseException:
        run.release()
        raise
    token = run.token
    return run.decided(lambda: survey_waited.seen(context, token) if waits else survey(context, leave_out=True))


def conclude_check(context: FleetContext, token: int) -> CheckResult | None:
    """Go on with the check whose nodes tasks have looked at; None when there is nothing to conclude.

    Where a plan is wanted and nodes keep hashes of their keys apart, they are asked first; then it is ``surveying`` again.

    Args:
        context: the fleet.
        token: of that check.
    """
    asked = context.surveys.asked()
    if asked.waits or not context.surveys.conclude(token, lock_ms=survey_round.CHECK_LOCK_MS):
        return None
    run = _Run(context, force=asked.force, by=asked.by, token=token)
    ended = True
    try:
        _before_lock(context)
        return run.decided(lambda: merged(context))
    except KeysUnmet as exc:
        ended = False
        return _asked_again(context, token, exc)
    except Skipped as exc:
        return run.ended(exc)
    finally:
        if ended:
            context.surveys.close(token, keep_ms=survey_round.keep_ms(context))


def _asked_again(context: FleetContext, token: int, unmet: KeysUnmet) -> CheckResult | None:
    """Have some nodes say which candidates they hold as well. The lock stays with the survey."""
    messages = survey_round.ask_again(context, token, unmet)
    if not messages:
        return None
    places = len(unmet.places)
    reason = f"{places} nodes, or parts of them, are asked which candidates they hold as well, {messages} messages sent; the check then goes on"
    return CheckResult(verdict="surveying", reason=reason)


def _surveying(context: FleetContext, token: int, *, force: bool, by: str) -> CheckResult:
    """Let tasks look at the nodes. The lock stays with the survey, whose tasks renew it."""
    try:
        nodes, messages = survey_round.begin(context, token, Asked(force=force, by=by))
    except ConfigurationError as exc:
        raise Skipped(exc.cause, str(exc)) from exc
    if not nodes:
        raise Skipped("already_running", "another check has taken over")
    return CheckResult(
        verdict="surveying", reason=f"{nodes} nodes are looked at, {messages} messages sent; the check then goes on"
    )


@dataclass(slots=True)
class _Run:
    """One check from its lock to its record."""

    context: FleetContext
    force: bool
    by: str
    token: int | None = None
    trace: Trace = field(default_factory=Trace)
    spread: float | None = None

    def decided(self, look: Callable[[], Survey]) -> CheckResult:
        """Look at the fleet, plan, and ask for a start where the mode says so; then record and let go."""
        if self.token is None:
            msg = "a check decides under its lock"
            raise ValueError(msg)
        try:
            plan = _checked_plan(self.context, self.trace, look, force=self.force, fence=self.token)
            self.spread = plan.imbalance_before
            result = self._handed_on(plan)
        except Skipped as exc:
            return self.ended(exc)
        except KeysUnmet:
            raise
        except BaseException:
            self.release()
            raise
        return self._recorded(result)

    def ended(self, why: Skipped) -> CheckResult:
        """Record why nothing is done."""
        self.spread = why.spread
        return self._recorded(CheckResult(verdict="skipped", reason=str(why)))

    def release(self) -> None:
        """Let the next check begin."""
        if self.token is not None:
            self.context.fleet.release_check(self.token)

    def _handed_on(self, plan: RebalancePlan) -> CheckResult:
        context, summary = self.context, self.trace.summary(plan)
        if context.settings.mode != "auto":
            reason = f"observe: {summary}; nothing moves until `rebalance start {plan.plan_id}`"
            return CheckResult(verdict="planned", reason=reason, plan_id=plan.plan_id)
        _adopt(context, plan)
        job_id = f"rebal-{plan.plan_id}"
        context.fleet.note_starting(job_id)
        context.messenger.publish_start(plan.plan_id, job_id)
        return CheckResult(verdict="started", reason=f"planned: {summary}; starting {job_id}", plan_id=plan.plan_id)

    def _recorded(self, result: CheckResult) -> CheckResult:
        self.release()
        context, now = self.context, self.context.now()
        record = CheckRecord(
            at=now,
            verdict=result.verdict,
            reason=result.reason,
            plan_id=result.plan_id,
            imbalance=self.spread,
            forced=self.force,
        )
        context.fleet.record_check(record, by=self.by)
        snapshot = self.trace.snapshot(now, result, self.spread, forced=self.force)
        context.snapshots.save(snapshot, retention=context.settings.options.check_retention)
        return result


def _adopt(context: FleetContext, plan: RebalancePlan) -> None:
    try:
        touched = {name for move in plan.moves for name in (move.source_node, move.target_node)}
        adopt(context, only=nearby(context, touched))
    except NodeError as exc:
        raise Skipped(exc.cause, str(exc)) from exc


def _before_lock(context: FleetContext) -> None:
    """Cheap reasons to stop, in the order an operator would ask."""
    options = context.settings.options
    if in_quiet_hours(options, now=context.now()):
        start, end = options.quiet_hours or (0, 0)
        raise Skipped("quiet_hours", f"it is between {start}:00 and {end}:00 {options.quiet_hours_timezone}")
    reasons = context.fleet.paused_reasons()
    if reasons:
        raise Skipped("paused", f"the fleet is paused ({', '.join(sorted(reasons))})")
    active = context.jobs.active()
    if active is not None:
        raise Skipped("job_active", f"job {active} is still active")
    digests = context.digests()
    own = context.settings.digest()
    strangers = sorted(worker for worker, digest in digests.items() if digest != own)
    if strangers:
        raise Skipped(
            "digests_differ",
            f"{', '.join(strangers)} run with another configuration than this process; give all the same rebalance.toml and restart",
        )


def _checked_plan(
    context: FleetContext, trace: Trace, look: Callable[[], Survey], *, force: bool, fence: int
) -> RebalancePlan:
    """Survey, plan, verify and save; raises Skipped with the reason why there is nothing to plan."""
    try:
        seen = trace.seen = _noted(context, look())
        spread = _worth_planning(context, seen, force=force)
        plan = _standing_or_new(context, trace, seen, force=force)
    except (NodeError, ConfigurationError, InvalidInventory) as exc:
        raise Skipped(exc.cause, str(exc)) from exc
    if not plan.moves:
        bound = f" (bound by {', '.join(plan.limits_reached)})" if plan.limits_reached else ""
        why = "; ".join(plan.cannot) or ", ".join(f"{reason} {count}" for reason, count in plan.not_moved.items())
        raise Skipped("nothing_to_move", f"imbalance {spread:.3f}, but no object may move{bound}: {why}", spread)
    try:
        if not trace.again:
            context.plans.save(plan, fence=fence)
    except StaleLease as exc:
        raise Skipped("already_running", str(exc), spread) from exc
    return plan


def _standing_or_new(context: FleetContext, trace: Trace, seen: Survey, *, force: bool) -> RebalancePlan:
    """The plan that was made of the very same, else a new one."""
    basis = basis_of(context, seen, force=force, left_today=left_today(context))
    before = trace.plan = standing(context, basis)
    if before is not None:
        trace.again = True
        return before
    plan = trace.plan = _plan(context, seen, force=force)
    note(context, basis, plan)
    return plan


def _noted(context: FleetContext, seen: Survey) -> Survey:
    """Keep how full the nodes are: also a balanced fleet wants to be looked at."""
    # What was not looked at now is as it was.
    before = context.fleet.usage() if seen.left_out else {}
    known = {name: size for name, size in before.items() if name in seen.left_out}
    context.fleet.set_usage(known | {node.node_id: node.used_bytes for node in seen.nodes if node.used_bytes})
    context.fleet.set_capacities({node.node_id: node.capacity_bytes or 0 for node in seen.nodes})
    return seen


def _worth_planning(context: FleetContext, seen: Survey, *, force: bool) -> float:
    if sum(node.capacity_bytes or 0 for node in seen.nodes) == 0:
        raise Skipped("no_capacity", "no node states a capacity above 0")
    eligible = [node for node in seen.nodes if is_eligible(node)]
    draining = [node.node_id for node in seen.nodes if node.state is NodeState.DRAINING]
    if len(eligible) < MIN_NODES and not (eligible and draining):
        raise Skipped(
            "too_few_nodes", f"{len(eligible)} eligible nodes (active, capacity above 0); balance needs {MIN_NODES}"
        )
    spread = imbalance(seen.nodes, seen.used_bytes)
    threshold = context.settings.options.imbalance_threshold
    if spread < threshold and not draining and not force:
        raise Skipped("under_threshold", f"imbalance {spread:.3f} is under the threshold {threshold:.3f}", spread)
    return spread


def _plan(context: FleetContext, seen: Survey, *, force: bool) -> RebalancePlan:
    epoch = context.fleet.note_map(_map_digest(seen.nodes))
    options = context.settings.options
    if force:
        # An operator who forces a check wants whatever the target asks for, however small the spread is.
        options = options.model_copy(update={"target_imbalance": options.effective_target, "imbalance_threshold": 0.0})
    prices = context.settings.price_matrix
    now = context.now()
    plan = plan_rebalance(
        seen.nodes,
        seen.inventory,
        options=options,
        fleet=context.settings.fleet,
        epoch=epoch,
        now=now,
        prices=prices,
        remaining_cost_today=left_today(context),
    )
    verify_plan(plan, seen.nodes, seen.inventory, options, prices=prices, now=now)
    return with_losses(plan, context.settings.nodes)


def left_today(context: FleetContext) -> Decimal | None:
    """What the day's money still allows; ``None`` without such a limit."""
    most = context.settings.options.max_cost_per_day
    if most is None:
        return None
    spent = context.connection.hget(context.keys.spend(context.now().strftime("%Y-%m-%d")), "cost_nano")
    return max(Decimal(0), most - Decimal(int(spent or 0)) / NANO)


def _map_digest(nodes: tuple[NodeDescriptor, ...]) -> str:
    """What a plan depends on besides the objects: nodes, capacities, states."""
    parts = sorted(f"{n.node_id}|{n.url}|{n.pool}|{n.state}|{n.capacity_bytes}|{n.weight}" for n in nodes)
    return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())


def plan_only(context: FleetContext) -> RebalancePlan:
    """Survey and plan for an operator; see `dry_run`."""
    return dry_run(context)[0]


def dry_run(context: FleetContext) -> tuple[RebalancePlan, Survey]:
    """Survey and plan for an operator; the plan is kept and can be started. A balanced fleet has a plan of no moves.

    Returns:
        The plan, and the fleet it was made for, which says which nodes were left out and why.

    Raises:
        JobActive: a job is moving objects about, so a plan would be stale at once.
        RetryableError: the workers that would be asked look at the nodes for a check.
        NodeError: a node is missing or not writable, and fewer than two are left.
        ConfigurationError: roots coincide, or a capacity must be stated.
    """
    active = context.jobs.active()
    if active is not None:
        raise JobActive(active)
    seen = _noted(context, survey_waited.seen_alone(context))
    plan = _plan(context, seen, force=False)
    context.plans.save(plan, fence=None)
    return plan, seen
