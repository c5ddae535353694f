"""One round of chaos: a fleet, its processes behind a bad network, and a schedule of faults that follows from a seed.

The schedule (what happens when, with which dice) is a pure function of the seed; the order of the processes' own steps is
not in its hands. After the storm everything is alive and the network is fair, waiting times are cut short, the jobs end,
cleanup runs, and `tests.support.audit` judges.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import psutil
import redis
from kombu.exceptions import KombuError

from rebalance_tasks import Rebalancer
from rebalance_tasks.control import cleanup as cleanups
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.errors import JobNotFound, ObjectNotFound, RebalanceError
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from rebalance_tasks.core.routes import every_queue, share_a_host
from rebalance_tasks.demo.processes import SOURCE_ROOT
from rebalance_tasks.migration import faults
from tests.chaos.report import Result
from tests.chaos.schedule import WEIGHTS, schedule
from tests.chaos.weather import Weather
from tests.support import audit, fragile, strangers
from tests.support.arena import context_of
from tests.support.fleets import NodeSpec, write_fleet
from tests.support.proxy import ChaosProxy
from tests.support.wait import wait_until
from tests.support.workers import ProcessFactory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


NODES: Final = ("n1", "n2", "n3", "n4")
#: Groups that may transfer at once.
LIMIT: Final = 3
DAY_MS: Final = 86_400_000
#: What a verb may end with while Redis is away or the job is not there any more.
OUTAGE: Final = (redis.RedisError, OSError, KombuError, RebalanceError)
#: One in so many fault points of a worker is its last.
DEATH_ONE_IN: Final = 150
#: In the calm, leases are let run out so often: a live runner renews its own several times in between.
HURRY_EVERY_S: Final = 3.0
#: How long a calm fleet may take to end what it has.
CALM_S: Final = 120.0


@dataclass
class Storm(Weather):
    """The round."""

    folder: Path
    seed: int
    storm_s: float
    objects: int = 120
    pace: float = 1.0
    weights: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)
    #: the table [fleet] besides the mode: how readers find an object
    service: Mapping[str, object] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    seen: list[str] = field(default_factory=list)

    def layout(self) -> dict[str, NodeSpec]:
        """The nodes: anybody reaches them all."""
        return {node: NodeSpec(capacity_bytes=10**8) for node in NODES}

    def __post_init__(self) -> None:
        self.dice = random.Random(f"fleet {self.seed}")
        (self.folder / "redis").mkdir(parents=True)
        self.ledger = self.folder / "ledger"
        self.ledger.mkdir()
        self.server = fragile.FragileServer(self.folder / "redis")
        self.proxy = ChaosProxy(self.server.port)
        options = {
            "throttle_bytes_per_sec": 400_000,
            "max_concurrent_migrations": LIMIT,
            "object_cooldown": "0s",
        }
        self.fleet = write_fleet(
            self.folder,
            redis_url=self.proxy.url,
            nodes=self.layout(),
            options=options,
            fleet={"mode": "observe", **self.service},
        )
        self.log = strangers.WriteLog(self.folder / "written.jsonl")
        for number in range(self.objects):
            node = self.dice.choice(list(self.fleet.roots))
            size = self.dice.choices((0, 1, 3_000, 20_000, 80_000, 400_000), (1, 4, 6, 6, 3, 1))[0]
            name = "empty" if size == 0 else f"{number % 5}/deep"
            strangers.create(self.log, self.fleet.roots[node], node, f"{name}/{number:04}", size)
        os.environ["REBALANCE_CONFIG"] = str(self.fleet.config)
        self.processes = ProcessFactory(self.folder, self.proxy.url)
        self.workers: list[Any] = []
        self.beats: list[Any] = []
        self.rebalancer = Rebalancer(redis_url=self.server.url)
        self.context = context_of(self.rebalancer)
        self.prefix = self.context.keys.prefix
        self.queues = every_queue(self.context.settings.nodes)
        self.plans: dict[str, RebalancePlan] = {}
        self.over = threading.Event()
        self.begun = 0
        self.reader = strangers.UnionReader(self.doors(), self.log, random.Random(f"reader {self.seed}"))

    # -- nodes ----------------------------------------------------------------------------------------------------
    def doors(self) -> dict[str, Callable[[str], bytes]]:
        """How readers who look on all nodes read each."""
        return {node: strangers.door(root) for node, root in self.fleet.roots.items()}

    def written_to(self) -> Mapping[str, Path]:
        """Where strangers write: node -> directory."""
        return self.fleet.roots

    def homes(self) -> dict[str, tuple[str, int]]:
        """Key -> its node and its size."""
        found: dict[str, tuple[str, int]] = {}
        for node, root in self.fleet.roots.items():
            for key in strangers.keys_on(root):
                with suppress(FileNotFoundError):
                    found[key] = node, (root / key).stat().st_size
        return found

    # -- processes ------------------------------------------------------------------------------------------------
    def worker_env(self) -> dict[str, str]:
        """What makes a worker mortal, and lets it find its app."""
        python_path = os.pathsep.join(filter(None, [str(SOURCE_ROOT), os.environ.get("PYTHONPATH", "")]))
        return {
            faults.ENVIRONMENT: f"*=maybe:{DEATH_ONE_IN}",
            faults.LEDGER: str(self.ledger),
            "PYTHONPATH": python_path,
        }

    def start_worker(self) -> None:
        """Start a worker whose large objects are small; every third is a pool of threads, which dies as a whole."""
        self.begun += 1
        pool = ("--pool", "threads") if self.begun % 3 == 0 else ()
        worker = self.processes.worker(wait=False, env=self.worker_env(), app="tests.support.small_parts", extra=pool)
        self.workers.append(worker)

    def start_beat(self) -> None:
        self.beats.append(self.processes.beat())

    def keep_alive(self) -> None:
        """What an init system does: start again what has ended."""
        self.workers = [worker for worker in self.workers if worker.alive]
        self.beats = [beat for beat in self.beats if beat.alive]
        while len(self.workers) < 2:
            self.start_worker()
        while not self.beats:
            self.start_beat()

    def kill_worker(self, dice: random.Random) -> None:
        if self.workers:
            self.workers.pop(dice.randrange(len(self.workers))).kill9()
            self.kills["worker"] += 1

    def kill_child(self, dice: random.Random) -> None:
        if not self.workers:
            return
        victim = dice.choice(self.workers)
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            children = [child.pid for child in psutil.Process(victim.pid).children(recursive=True)]
            if children:
                os.kill(dice.choice(children), signal.SIGKILL)
                self.kills["child"] += 1

    def kill_beat(self, dice: random.Random) -> None:
        if self.beats:
            self.beats.pop().kill()
            self.kills["beat"] += 1

    def freeze(self, dice: random.Random) -> None:
        """Stop a worker, let its leases run out, let it go on."""
        if not self.workers:
            return
        victim = dice.choice(self.workers)
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            os.killpg(victim.pid, signal.SIGSTOP)
            try:
                fragile.jump(self.server.client, self.prefix, 15_000)
                time.sleep(dice.uniform(0.2, 1.0))
            finally:
                os.killpg(victim.pid, signal.SIGCONT)

    # -- Redis ----------------------------------------------------------------------------------------------------
    def crash_redis(self, dice: random.Random) -> None:
        self._crash(dice, lose_s=0.0)

    def crash_and_lose(self, dice: random.Random) -> None:
        self._crash(dice, lose_s=dice.uniform(0.05, 2.0))

    def power_cut(self, dice: random.Random) -> None:
        """Workers and Redis at once, and Redis' last seconds."""
        for worker in self.workers:
            worker.kill9()
            self.kills["worker"] += 1
        self.workers.clear()
        self._crash(dice, lose_s=dice.uniform(0.5, 2.0))

    def _crash(self, dice: random.Random, *, lose_s: float) -> None:
        lost = self.server.crash(lose_s=lose_s, tear=dice.choice((0, 0, 1, 17)) if lose_s else 0)
        self.kills["redis"] += 1
        self.done["bytes of Redis' file lost"] += lost
        time.sleep(dice.uniform(0.0, 1.0))
        self.server.start()

    def jump(self, dice: random.Random) -> None:
        fragile.jump(self.server.client, self.prefix, dice.choice((-60_000, -5_000, 3_000, 20_000, 3_600_000)))

    def time_passes(self, dice: random.Random) -> None:
        """Long enough for the leases of the dead to end, so that a round sees more than waiting."""
        fragile.jump(self.server.client, self.prefix, 11_000)
        run_sweep(self.context)

    # -- operators ------------------------------------------------------------------------------------------------
    def pause(self, dice: random.Random) -> None:
        self._verb("pause", dice)

    def resume(self, dice: random.Random) -> None:
        self._verb("resume", dice)

    def cancel(self, dice: random.Random) -> None:
        self._verb("cancel", dice)

    def _verb(self, name: str, dice: random.Random) -> None:
        """From several clients at once, one of them behind the bad network."""
        job_id = self.context.jobs.active()
        if job_id is None:
            return

        def client(url: str) -> None:
            with suppress(*OUTAGE):
                getattr(Rebalancer(redis_url=url), name)(job_id)

        for url in (self.server.url, self.proxy.url)[: dice.randint(1, 2)]:
            threading.Thread(target=client, args=(url,), daemon=True).start()

    def sweep(self, dice: random.Random) -> None:
        run_sweep(self.context)

    def cleanup(self, dice: random.Random) -> None:
        if dice.random() < 0.5:
            fragile.jump(self.server.client, self.prefix, 10_000)
        cleanups.run_cleanup(self.context)

    # -- jobs -----------------------------------------------------------------------------------------------------
    def ensure_job(self) -> None:
        """Start a job again that Redis forgot, else a new one when none is active."""
        if self.context.jobs.active() is not None:
            return
        for job_id, plan in self.plans.items():
            if not self.context.jobs.exists(job_id):
                self.rebalancer.start(plan, job_id)
                return
        if self.over.is_set():
            return
        job_id = f"j{len(self.plans) + 1:03}"
        moves = self.random_moves()
        if moves:
            self.plans[job_id] = RebalancePlan(plan_id=f"p-{job_id}", fleet="test", moves=moves)
            self.rebalancer.start(self.plans[job_id], job_id)

    def targets_of(self, source: str) -> list[str]:
        """Nodes to which some host can bring what is on a node."""
        nodes = {node.node_id: node for node in self.context.settings.nodes}
        return [name for name, node in nodes.items() if name != source and share_a_host(nodes[source], node)]

    def random_moves(self) -> tuple[RebalanceMove, ...]:
        """Half of what is there goes somewhere else."""
        homes = self.homes()
        moves: list[RebalanceMove] = []
        for key in self.dice.sample(sorted(homes), k=len(homes) // 2):
            source, size = homes[key]
            target = self.dice.choice(self.targets_of(source))
            moves.append(RebalanceMove(object_key=key, source_node=source, target_node=target, size_bytes=size))
        return tuple(moves)

    # -- the round ------------------------------------------------------------------------------------------------
    def run(self) -> Result:
        """Storm, calm, judgement."""
        try:
            self.keep_alive()
            self.rebalancer.adopt()
            wait_until(self.rebalancer.workers, 60, "a worker is there")
            self.ensure_job()
            threads = [
                threading.Thread(target=self._strange, daemon=True),
                threading.Thread(target=self._watch, daemon=True),
            ]
            for thread in (*threads, self.reader):
                thread.start()
            self.rage()
            self.over.set()
            threads[0].join(30)
            self.calm()
            self.reader.stop()
            return self.judge()
        finally:
            self.over.set()
            self.end()

    def end(self) -> None:
        """Everything that was started."""
        self.processes.stop_all()
        self.proxy.close()
        self.server.close()
        self.log.close()

    def rage(self) -> None:
        begun = time.monotonic()
        for act in schedule(self.seed, self.storm_s, self.pace, self.weights):
            time.sleep(max(0.0, begun + act.at - time.monotonic()))
            self.done[act.name] += 1
            self._trying(lambda act=act: getattr(self, act.name)(random.Random(act.dice)))  # type: ignore[misc]
            self.keep_alive()
            self._trying(self.ensure_job)

    @staticmethod
    def _trying(act: Callable[[], object]) -> None:
        with suppress(*OUTAGE):
            act()

    def _strange(self) -> None:
        strange = strangers.Strangers(self.written_to(), self.log, random.Random(f"strangers {self.seed}"))
        while not self.over.wait(0.1):
            strange.act()

    def _watch(self) -> None:
        """The gate, all the time: never more permits than the limit."""
        client = redis.Redis.from_url(self.server.url, decode_responses=True, socket_timeout=5)
        while not self.over.wait(0.01):
            with suppress(redis.RedisError, OSError):
                permits: Any = client.hgetall(f"{self.prefix}permits")
                if len(permits) > LIMIT:
                    self.seen.append(f"{len(permits)} permits are out: {permits}")
        client.close()

    def calm(self) -> None:
        """Everything alive, fair weather: workers and beat must bring all jobs to their end."""
        (self.ledger / "calm").touch()
        self.mend()

        hurried = [0.0]

        def over() -> bool:
            self.keep_alive()
            with suppress(*OUTAGE):
                self.ensure_job()
                active = self.context.jobs.active()
                if active is None:
                    return all(self.context.jobs.load(job_id).status.terminal for job_id in self.plans)
                self.rebalancer.resume(active)
                if time.monotonic() > hurried[0] + HURRY_EVERY_S:
                    # The dead hold their leases for 10 s; nobody learns anything by waiting.
                    hurried[0] = time.monotonic()
                    fragile.jump(self.server.client, self.prefix, 11_000)
                run_sweep(self.context)
            return False

        wait_until(over, CALM_S, f"the jobs are over (seed {self.seed}, {dict(self.done)})", interval_s=0.3)
        for worker in self.workers:
            worker.kill()
        for beat in self.beats:
            beat.kill()

    def mend(self) -> None:
        """Fair weather on every line."""
        self.proxy.calm()

    def clean(self) -> None:
        """Clean up as if days had passed, until nothing is due: what is found is freed late, what was freed late is trash first."""
        age, cleanups.ORPHAN_AGE = cleanups.ORPHAN_AGE, type(cleanups.ORPHAN_AGE)(0)  # type: ignore[misc]
        try:
            for _ in range(4):
                client = self.server.client
                for move_id in cast("list[str]", client.zrange(f"{self.prefix}trash:due", 0, -1)):
                    client.zincrby(f"{self.prefix}trash:due", -DAY_MS, move_id)
                cleanups.run_cleanup(self.context)
        finally:
            cleanups.ORPHAN_AGE = age  # type: ignore[misc]

    def gather(self) -> None:
        """Lay what is no file where the judge looks."""

    def judge(self) -> Result:
        self.clean()
        self.gather()
        answers: dict[str, str | None] = {}
        for root in self.fleet.roots.values():
            for key in strangers.keys_on(root):
                try:
                    answers[key] = self.rebalancer.locate(key).node_id
                except (ObjectNotFound, JobNotFound):
                    answers[key] = None
        problems = audit.audit(
            self.fleet.roots, self.log, self.server.client, self.prefix, job_ids=list(self.plans), answers=answers
        )
        strikes = self.ledger / "strikes"
        struck = Counter(strikes.read_text().split() if strikes.exists() else ())
        self.kills["at a fault point"] += struck.total()
        jobs = [self.rebalancer.status(job_id) for job_id in self.plans]
        violations = [*problems, *self.reader.violations, *self.seen]
        return Result(self.seed, self.kills, struck, self.done, jobs, self.reader.reads, violations)
