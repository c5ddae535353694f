"""The client: the original's seven verbs and three more, on the state in Redis, without waiting for a worker.

What only looks is `rebalance_tasks.viewer`; what acts is here, and needs drivers and messages.
"""

from __future__ import annotations

import getpass
import socket
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.lazily import module
from rebalance_tasks.viewer import Viewer

if TYPE_CHECKING:
    from collections.abc import Callable
    from wsgiref.types import WSGIApplication

    from prometheus_client import CollectorRegistry

    from rebalance_tasks.control import check as checks
    from rebalance_tasks.control import doctor as doctors
    from rebalance_tasks.control import drain as drains
    from rebalance_tasks.control import fleetwide, lifecycle, throttles
    from rebalance_tasks.control import overview as overviews
    from rebalance_tasks.control import reindex as reindexes
    from rebalance_tasks.control import retry as retries
    from rebalance_tasks.control import start as starts
    from rebalance_tasks.control import survey as surveys
    from rebalance_tasks.control import undo as undos
    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.control.drain import StateChange
    from rebalance_tasks.control.examining.findings import Finding
    from rebalance_tasks.control.overview import Overview
    from rebalance_tasks.control.reindex_report import ReindexReport
    from rebalance_tasks.control.survey import NodeReport, Survey
    from rebalance_tasks.control.surveying import waited
    from rebalance_tasks.control.throttles import Direction
    from rebalance_tasks.core.activation import ActivationCheck
    from rebalance_tasks.core.drain import DrainCheck
    from rebalance_tasks.core.models import CheckResult, ControlResult, NodeDescriptor, RebalanceJob, RebalancePlan
    from rebalance_tasks.core.undo import WayBack
    from rebalance_tasks.runtime import Runtime
else:
    # Loaded when first used: who asks for a job's status waits for neither Celery nor NumPy.
    (
        checks,
        doctors,
        drains,
        fleetwide,
        lifecycle,
        overviews,
        reindexes,
        retries,
        starts,
        surveys,
        throttles,
        undos,
        waited,
    ) = (
        module(f"rebalance_tasks.control.{name}")
        for name in (
            *("check", "doctor", "drain", "fleetwide", "lifecycle", "overview"),
            *("reindex", "retry", "start", "survey", "throttles", "undo", "surveying.waited"),
        )
    )

__all__ = ["Rebalancer"]

#: Of somebody who acts; it is noted with each event.
_LONGEST_NAME: Final = 128


class Rebalancer(Viewer):
    """A fleet's rebalancer, from any process that has the fleet's configuration.

    Example:
        >>> rebalancer = Rebalancer()
        >>> job = rebalancer.start(rebalancer.plan())
        >>> for job in rebalancer.watch(job.job_id):
        ...     print(job.completed_moves, "of", job.total_moves)
    """

    #: Who asks, as `acting_as` was told; empty: whoever runs this process.
    by: str = ""

    def acting_as(self, who: str) -> Self:
        """Return this client for somebody else: what it does is noted as asked for by ``who``.

        For a service that acts for its users, as the console does; connections are shared.

        Args:
            who: at most 128 printable characters.

        Raises:
            InvalidArgument: that is no name.
        """
        if not who.isprintable() or not 0 < len(who) <= _LONGEST_NAME:
            msg = f"who={who[:40]!a}: name who asks in 1 to {_LONGEST_NAME} printable characters"
            raise InvalidArgument(msg)
        _ = self._state, self._runtime  # made here, or every other client would make its own
        other = copy(self)
        other.by = who
        return other

    @cached_property
    def _runtime(self) -> Runtime:
        """What it takes to act: drivers and messages."""
        from rebalance_tasks.celery import make_app  # noqa: PLC0415  see above
        from rebalance_tasks.runtime import Runtime  # noqa: PLC0415

        return Runtime(self.settings, make_app(self.settings))

    @property
    def _context(self) -> FleetContext:
        return self._runtime.context

    # -- the verbs of a job ---------------------------------------------------------------------------------------
    def start(self, plan: RebalancePlan | str, job_id: str | None = None) -> RebalanceJob:
        """Start a plan; with a job_id that is known already, return that job.

        Args:
            plan: a plan, or the id of a kept one.
            job_id: default ``rebal-<plan id>``.

        Raises:
            PlanNotFound, JobActive, NodeMissing, NodeNotWritable.
        """
        return starts.start_job(self._context, plan, job_id=job_id, requested_by=self._who())

    def pause(self, job_id: str) -> ControlResult:
        """Pause a job: no byte moves once its runners have seen the flag (within 100 ms). Raises: JobNotFound."""
        return lifecycle.pause(self._context, job_id, by=self._who())

    def resume(self, job_id: str) -> ControlResult:
        """Lift the operator's pause. Raises: JobNotFound."""
        return lifecycle.resume(self._context, job_id, by=self._who())

    def cancel(self, job_id: str) -> ControlResult:
        """Cancel a job: published moves are finished, unpublished ones undone. Raises: JobNotFound."""
        return lifecycle.cancel(self._context, job_id, requested_by=self._who())

    def retry_failed(self, job_id: str, *, skipped: bool = False) -> RebalanceJob:
        """Start the failed moves of an ended job again, as a job ``<job>-retry1``; asked twice, it is one retry.

        Args:
            job_id: the job that ended.
            skipped: also what was skipped for a cause that passes: budgets, a source that was written to, a cancel.

        Raises:
            JobNotFound, JobActive, NodeMissing.
            InvalidArgument: the job has not ended, nothing failed, or nothing of it is left to move.
        """
        return retries.retry_failed(self._context, job_id, skipped=skipped, requested_by=self._who())

    # -- the whole fleet ------------------------------------------------------------------------------------------
    def pause_all(self) -> ControlResult:
        """Pause the fleet: the active job (if any; else ``job_id`` is empty), and every check and job to come."""
        return fleetwide.pause_all(self._context, by=self._who())

    def resume_all(self) -> ControlResult:
        """Lift the pause of the fleet and wake the active job, unless it is held for another reason."""
        return fleetwide.resume_all(self._context, by=self._who())

    def pause_node(self, node_id: str) -> ControlResult:
        """Hold one node: groups that touch it stop within 100 ms and wait without a permit; other groups go on.

        Returns:
            The active job as it is now (its id is empty when there is none).

        Raises:
            UnknownNode: it is not configured here.
        """
        return fleetwide.pause_node(self._context, node_id, by=self._who())

    def resume_node(self, node_id: str) -> ControlResult:
        """Let go of a node that was paused; the reason is not empty when it was not, or is out of reach."""
        return fleetwide.resume_node(self._context, node_id, by=self._who())

    def limit(self) -> int:
        """How many groups may transfer at once: what was set at run time, else `max_concurrent_migrations`."""
        return fleetwide.limit_in_force(self._context)

    def set_limit(self, limit: int | None) -> int:
        """Set how many groups may transfer at once, also for the running job; ``None`` goes by the configuration again.

        Raises:
            InvalidArgument: below 1.
        """
        return fleetwide.set_limit(self._context, limit, by=self._who())

    def throttle(self) -> int | None:
        """Bytes a second that each group may write: set at run time, else `throttle_bytes_per_sec`; ``None``: no limit."""
        return fleetwide.throttle_in_force(self._context)

    def set_throttle(self, rate_bytes_per_s: int | None) -> int | None:
        """Set how fast each group may write, also those that run; ``None`` lifts every throttle.

        Returns:
            The rate in force.

        Raises:
            InvalidArgument: below 1.
        """
        return fleetwide.set_throttle(self._context, rate_bytes_per_s, by=self._who())

    def set_node_throttle(
        self, node_id: str, direction: Direction, rate: int | Literal["default"] | None
    ) -> int | None:
        """Set how fast all workers together read from a node, write to it, or have its server copy; see `throttles.set_node_throttle`.

        Raises:
            UnknownNode, InvalidArgument.
        """
        return throttles.set_node_throttle(self._state, node_id, direction, rate, by=self._who())

    def reset_throttle(self) -> int | None:
        """Go by the configured rate again, and return it."""
        return fleetwide.reset_throttle(self._context, by=self._who())

    def reindex(self, *, force: bool = False, progress: Callable[[int, int, str], None] | None = None) -> ReindexReport:
        """Rebuild locations, usage, forwardings, pending frees and trash records from the nodes, after Redis was lost.

        Args:
            force: also while a job is active; its moves are left to it.
            progress: called with (steps done, steps in all, what comes next).

        Raises:
            JobActive: a job moves objects about. RetryableError: a check is running.
        """
        return reindexes.reindex(self._context, force=force, progress=progress)

    # -- the fleet ------------------------------------------------------------------------------------------------
    def plan(self) -> RebalancePlan:
        """Survey the fleet and plan as a check would; the plan is kept, not started (no moves when all is balanced).

        Raises:
            JobActive: a job is still moving objects. NodeMissing, NodeNotWritable, ConfigurationError.
        """
        return checks.plan_only(self._context)

    def dry_run(self) -> tuple[RebalancePlan, Survey]:
        """Plan as `plan` does, and return the fleet it was planned for as well. Raises: as `plan`."""
        return checks.dry_run(self._context)

    def undo(self, job_id: str) -> WayBack:
        """Plan the way back of a job that has ended; the plan is kept, not started.

        Raises:
            JobNotFound, JobActive, NodeMissing.
            InvalidArgument: the job has not ended, or nothing of it can be taken back.
        """
        return undos.plan_undo(self._context, job_id)

    def check(self, *, force: bool = False) -> CheckResult:
        """Check the fleet now, as beat does; ``force`` plans even under the threshold."""
        return checks.run_check(self._context, force=force, by=self._who(), waits=True)

    def forget_node(self, node_id: str) -> int:
        """Forget every forwarding, override and catalogue entry that leads to a node (decommissioned, say); return how many.

        Readers of those keys look on the nodes again, so nothing is lost by it but a look.

        Raises:
            UnknownNode: it is not configured here.
        """
        return self._places.locations.forget_node(self._places.node(node_id).node_id)

    def doctor(self) -> list[Finding]:
        """Look whether everything is as it should be; each finding that is not well says what to do next."""
        return doctors.examine(self._context, self._context.messenger.worker_queues)

    def metrics_registry(self) -> CollectorRegistry:
        """The fleet's metrics, for a Prometheus endpoint; read from Redis at each scrape."""
        return self._runtime.metrics_registry()

    def metrics_app(self) -> WSGIApplication:
        """The same as a WSGI application, for large fleets: its text is written faster than prometheus-client's."""
        return self._runtime.metrics_app()

    def survey(self) -> Survey:
        """List every object of the fleet, as a check does, by its workers where only they reach a node; changes nothing.

        Raises:
            NodeError: a node cannot be surveyed. ConfigurationError. RetryableError: a check has the nodes looked at.
        """
        return waited.all_seen(self._context, whole=False)

    def cluster_map(self) -> list[NodeDescriptor]:
        """Return the configured nodes with the states that were set at run time; looks at none of them."""
        return self._context.nodes()

    def nodes(self) -> list[NodeReport]:
        """Report on every node as the workers that reach it see it: used, capacity, objects, and what is wrong."""
        return waited.reported(self._context)

    def glances(self) -> list[NodeReport]:
        """Report on every node without listing it: what it holds is what the last survey and the moves since then say."""
        return overviews.glances(self._context)

    def overview(self, glances: list[NodeReport]) -> Overview:
        """The fleet as Redis knows it at this instant, for the nodes of `glances` (which may be some seconds old)."""
        return overviews.overview(self._context, glances)

    def drain(self, node_id: str, *, force: bool = False, dry_run: bool = False) -> StateChange[DrainCheck]:
        """Have a node emptied by the plans to come, if all on it fits elsewhere; the answer says what does not.

        Args:
            node_id: the node.
            force: also when something will not fit.
            dry_run: only look.

        Raises:
            UnknownNode; NodeMissing: a node cannot be surveyed.
        """
        return drains.drain(self._context, node_id, force=force, dry_run=dry_run, by=self._who())

    def activate(self, node_id: str, *, force: bool = False, dry_run: bool = False) -> StateChange[ActivationCheck]:
        """Let a node give and take again, if it can hold what it has; the answer says what will not fit.

        Args:
            node_id: the node.
            force: also when something will not fit, or the node cannot be looked at.
            dry_run: only look.

        Raises:
            UnknownNode; NodeMissing: the node cannot be surveyed.
        """
        return drains.activate(self._context, node_id, force=force, dry_run=dry_run, by=self._who())

    def maintenance(self, node_id: str) -> StateChange[Any]:
        """Leave a node alone: it neither gives nor takes, and is not looked at. Raises: UnknownNode."""
        return drains.set_state(self._context, node_id, NodeState.MAINTENANCE, by=self._who())

    def adopt(self) -> list[str]:
        """Write ``.rebalance/node-id`` on nodes that lack it (also after a disk was replaced); return their ids."""
        return surveys.adopt(self._context, again=True)

    def _who(self) -> str:
        if self.by:
            return self.by
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = "unknown"
        return f"{user}@{socket.gethostname()}"
