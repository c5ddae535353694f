"""How long a fleet that does not fit on this machine would take: a discrete-event model, fed by measured costs.

farm (hosts, processes, cores) + job (objects, bytes, groups) + costs ─▶ **forecast** ─▶ time, throughput, load of Redis, and what
binds. A pure function without dice. The model: groups wait for permits; processes of any host take stretches of groups that hold one,
each stretch of one group at a time as `migration.slice` does; a stretch takes processor time of its host, which its processes share,
the rate of its group's throttle and of its two nodes, and time of Redis, which serves one call after the other: what the stretch asks for, and
a look at the job's flags every now and then as long as it works. Who waits for Redis does not look, so Redis is full at most. What it costs was
measured (docs/scale.md); how well it predicts is measured too (`tests/bench/bench_scale.py`).
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Annotated, Final

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from rebalance_tasks.core.models import Frozen

#: Objects of a stretch, and its bytes (`control.start`, `migration.slice`): the model cuts groups as a start does.
STRETCH_OBJECTS: Final = (256, 1024)
STRETCH_BYTES: Final = 64 * 2**20
SHARES: Final = 16
#: More stretches than this are simulated in bundles: their costs add up, only the last ones end less evenly.
MOST_STRETCHES: Final = 50_000

Seconds = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0.0)]


class Costs(Frozen):
    """What things cost: seconds of processor time unless said otherwise.

    The defaults were measured on 2 cores (x86-64, Python 3.11.7), local nodes in memory; see docs/scale.md.

    Attributes:
        object_s: a worker, for each object, whatever its size.
        byte_s: a worker, for each byte: copied, synced, read back.
        stretch_s: a worker, for each stretch: lease, batch, two syncs, manifest.
        group_s: a worker, for each group: messages, permit, monitor.
        start_object_s, start_job_s: the process that starts a job, for each move and once, before the first byte.
        control_group_s: the control plane, for each group while the job runs.
        redis_object_s, redis_stretch_s, redis_group_s, redis_job_s: Redis.
        redis_second_s: Redis, for each second by the clock in which a process works (and does not wait for Redis): looks at the job's
            flags, leases renewed.
        redis_object_bytes: memory of Redis for each move of a running job.
        late_s: seconds by the clock that a second of processor time takes longer, where nobody else wants the processor: interrupts,
            round trips, a machine that is not ours alone.
        fixed_s: seconds by the clock between a start and its last status in which nothing is copied.
    """

    object_s: Seconds = 4.44e-05
    byte_s: Seconds = 8.93e-10
    stretch_s: Seconds = 0.00197
    group_s: Seconds = 0.00161
    start_object_s: Seconds = 1.89e-06
    start_job_s: Seconds = 0.0137
    control_group_s: Seconds = 0.0023
    redis_object_s: Seconds = 3.01e-06
    redis_stretch_s: Seconds = 0.000683
    redis_group_s: Seconds = 0.000426
    redis_job_s: Seconds = 0.00334
    redis_second_s: Seconds = 0.000822
    redis_object_bytes: Seconds = 220.0
    late_s: Seconds = 0.012
    fixed_s: Seconds = 0.00997


class Work(Frozen):
    """One job: so many objects of a mean size, between so many nodes in so many pairs."""

    objects: PositiveInt
    mean_bytes: NonNegativeFloat
    groups: PositiveInt = 1
    nodes: PositiveInt = 2


class Farm(Frozen):
    """What carries it.

    Attributes:
        processes, cores: of each host.
        shares_cores: Redis runs on the (only) workers' host, as on a small machine.
        limit: groups that transfer at once.
        throttle: bytes a second of each group; ``None``: no throttle.
        node_rate: bytes a second that one node reads or writes; ``None``: as fast as asked.
    """

    hosts: PositiveInt = 1
    processes: PositiveInt = 2
    cores: PositiveInt = 2
    shares_cores: bool = False
    limit: PositiveInt = 3
    throttle: Rate | None = None
    node_rate: Rate | None = None


class Forecast(Frozen):
    """What the model expects.

    Attributes:
        seconds: from the start to the last status.
        worker_s, start_s, control_s, redis_s: processor time; the start is a part of the control plane's.
        redis_load: share of one core that Redis uses while the job runs, at most 1.
        worked_s: seconds by the clock in which processes work or are held back by a throttle or a node, added up.
        redis_bytes: of the running job.
        bound_by: what kept the job from being faster: ``start`` (one process looks at every move before the first byte),
            ``processors``, ``redis``, ``throttle``, ``nodes`` or ``permits``.
    """

    seconds: float
    objects_per_s: float
    bytes_per_s: float
    worker_s: float
    start_s: float
    control_s: float
    redis_s: float
    redis_load: float
    worked_s: float
    redis_bytes: NonNegativeInt
    bound_by: str


@dataclass(slots=True)
class _Group:
    """A group that holds a permit: stretches left to take and to end, and when its throttle lets the next byte pass."""

    number: int
    left: int
    open: int
    free_at: float = 0.0


@dataclass(slots=True)
class _Stretch:
    """What one (bundle of) stretch costs."""

    processor_s: float
    redis_s: float
    size_bytes: float


@dataclass(slots=True)
class _Model:
    farm: Farm
    stretch: _Stretch
    redis_second_s: float
    late_s: float
    waiting: deque[_Group]
    nodes: list[float]
    busy: list[int]
    permitted: list[_Group] = field(default_factory=list)
    redis_free: float = 0.0
    redis_s: float = 0.0
    worked_s: float = 0.0
    bound: dict[str, float] = field(default_factory=dict)

    def admit(self) -> None:
        while self.waiting and len(self.permitted) < self.farm.limit:
            self.permitted.append(self.waiting.popleft())

    def take(self) -> _Group | None:
        """The group that a free process goes to: the one with the most left to take, as extra slices spread."""
        best = max(self.permitted, key=lambda group: group.left, default=None)
        if best is None or best.left == 0:
            return None
        best.left -= 1
        return best

    def run(self, group: _Group, host: int, now: float) -> float:
        """When a stretch that is taken now ends, by whatever lets it end last."""
        works = self._works(group, host, now)
        worked_s = max(works.values()) - now
        asked_s = self.stretch.redis_s + worked_s * self.redis_second_s
        self.redis_free = max(self.redis_free, now) + asked_s
        self.redis_s += asked_s
        self.worked_s += worked_s
        ends = {**works, "redis": self.redis_free + works["processors"] - now}
        ends["processors"] += asked_s
        why = max(ends, key=lambda name: (ends[name], name == "processors"))
        self.bound[why] = self.bound.get(why, 0.0) + ends[why] - now
        return ends[why]

    def _works(self, group: _Group, host: int, now: float) -> dict[str, float]:
        """When everything but Redis lets the stretch end."""
        farm, stretch = self.farm, self.stretch
        asked = float(self.busy[host])
        if farm.shares_cores:
            # Redis wants its part of the same cores.
            asked *= 1 + stretch.redis_s / ((stretch.processor_s + stretch.redis_s) or 1.0)
        ends = {"processors": now + stretch.processor_s * (1 + self.late_s) * max(1.0, asked / farm.cores)}
        if farm.throttle is not None:
            group.free_at = max(group.free_at, now) + stretch.size_bytes / farm.throttle
            ends["throttle"] = group.free_at
        if farm.node_rate is not None:
            seconds = stretch.size_bytes / farm.node_rate
            for node in (2 * group.number, 2 * group.number + 1):
                at = node % len(self.nodes)
                self.nodes[at] = max(self.nodes[at], now) + seconds
                ends["nodes"] = max(ends.get("nodes", 0.0), self.nodes[at])
        return ends


def forecast(work: Work, farm: Farm, costs: Costs | None = None) -> Forecast:
    """Predict one job.

    Args:
        work: the job.
        farm: what carries it.
        costs: default those measured on the reference machine.
    """
    costs = costs or Costs()
    sizes, stretch, bundle = _cut(work, costs)
    groups = deque(_Group(number, count, count) for number, count in enumerate(sizes))
    nodes, busy = [0.0] * max(2, work.nodes), [0] * farm.hosts
    model = _Model(farm, stretch, costs.redis_second_s, costs.late_s, groups, nodes, busy)
    start_s = costs.start_job_s + work.objects * costs.start_object_s
    seconds, idle = _play(model, begin=max(start_s * (1 + costs.late_s), costs.redis_job_s))
    seconds += costs.fixed_s
    stretches = sum(sizes) * bundle
    worker_s = stretches * costs.stretch_s + work.groups * costs.group_s
    worker_s += work.objects * (costs.object_s + work.mean_bytes * costs.byte_s)
    redis_s = costs.redis_job_s + model.redis_s
    bound = model.bound
    if start_s > seconds / 2:
        bound = {"start": start_s}
    elif idle > sum(bound.values()) / 2:
        bound = {"permits": idle}
    return Forecast(
        seconds=seconds,
        objects_per_s=work.objects / seconds,
        bytes_per_s=work.objects * work.mean_bytes / seconds,
        worker_s=worker_s,
        start_s=start_s,
        control_s=start_s + work.groups * costs.control_group_s,
        redis_s=redis_s,
        redis_load=redis_s / seconds,
        worked_s=model.worked_s,
        redis_bytes=round(work.objects * costs.redis_object_bytes),
        bound_by=max(bound, key=lambda name: bound[name]),
    )


def stretches_of(work: Work) -> float:
    """Return how many stretches a job is cut into, as `control.start` does for objects of one size."""
    return max(1.0, round(work.objects / work.groups / _objects_of_stretch(work))) * work.groups


def _objects_of_stretch(work: Work) -> float:
    per_group = work.objects / work.groups
    fewest, most = STRETCH_OBJECTS
    objects = min(max(per_group / SHARES, fewest), most, per_group)
    return max(1.0, min(objects, STRETCH_BYTES / work.mean_bytes)) if work.mean_bytes else objects


def _cut(work: Work, costs: Costs) -> tuple[list[int], _Stretch, float]:
    """Cut the job as a start does: stretches (bundled, if many) of each group, what one costs, and how many it stands for."""
    per_group = work.objects / work.groups
    wanted = stretches_of(work) / work.groups
    bundles = max(1, round(min(wanted, MOST_STRETCHES / work.groups)))
    bundle = wanted / bundles
    each = per_group / bundles
    processor_s = each * (costs.object_s + work.mean_bytes * costs.byte_s) + bundle * costs.stretch_s
    redis_s = each * costs.redis_object_s + bundle * costs.redis_stretch_s
    return (
        [bundles] * work.groups,
        _Stretch(
            processor_s + costs.group_s / bundles, redis_s + costs.redis_group_s / bundles, each * work.mean_bytes
        ),
        bundle,
    )


def _play(model: _Model, *, begin: float) -> tuple[float, float]:
    """Play until every stretch has ended; return when, and the seconds that processes were idle for want of a permit."""
    farm = model.farm
    free: list[int] = [host for _ in range(farm.processes) for host in range(farm.hosts)]
    running: list[tuple[float, int, int, _Group]] = []
    now, number, idle = begin, 0, 0.0
    model.admit()
    while True:
        number = _hand_out(model, free, running, now, number)
        if not running:
            return now, idle
        before = now
        now, _, host, group = heapq.heappop(running)
        if model.waiting:
            idle += len(free) * (now - before)
        model.busy[host] -= 1
        free.append(host)
        group.open -= 1
        if group.open == 0:
            model.permitted.remove(group)
            model.admit()


def _hand_out(
    model: _Model, free: list[int], running: list[tuple[float, int, int, _Group]], now: float, number: int
) -> int:
    """Give every free process a stretch, as long as there are any; those that start together share their host from the start."""
    taken: list[tuple[int, _Group]] = []
    while free and (group := model.take()) is not None:
        host = free.pop(0)
        model.busy[host] += 1
        taken.append((host, group))
    for host, group in taken:
        number += 1
        heapq.heappush(running, (model.run(group, host, now), number, host, group))
    return number
