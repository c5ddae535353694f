"""The names of everything this package keeps in Redis.

All keys of a fleet share the hash tag ``{<fleet>}``, so that a Lua script stays on one slot and several fleets share a
server without meeting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

#: First part of every key, unless ``key_prefix`` says otherwise.
DEFAULT_ROOT: Final = "rebalance"


@dataclass(frozen=True, slots=True)
class FleetKeys:
    """Keys of one fleet.

    Attributes:
        root: first part of every key (the setting ``key_prefix``), so that a shared server can tell its users apart.
    """

    fleet: str
    root: str = DEFAULT_ROOT
    prefix: str = field(init=False)

    def __post_init__(self) -> None:
        """Derive the prefix."""
        object.__setattr__(self, "prefix", f"{self.root}:{{{self.fleet}}}:")

    def key(self, name: str) -> str:
        """Return the fleet's key of that name."""
        return self.prefix + name

    #: hash: epoch, map_digest, life of the server (run id, since when), nodes searched in it
    @property
    def info(self) -> str:  # noqa: D102
        return self.key("info")

    #: string: fencing token of the running check (expires)
    @property
    def check_lock(self) -> str:  # noqa: D102
        return self.key("check:lock")

    #: string: job that a check has asked to be started (expires)
    @property
    def check_starting(self) -> str:  # noqa: D102
        return self.key("check:starting")

    #: string: bytes a second of each group, set at run time (wins over the file; 0 is no limit)
    @property
    def throttle(self) -> str:  # noqa: D102
        return self.key("throttle")

    def node_throttle(self, node_id: str, direction: str) -> str:
        """string: rate of a node, set at run time; ``direction`` is read, write (bytes/s) or requests (a second)."""
        return self.key(f"throttle:{node_id}:{direction}")

    def node_bucket(self, node_id: str, direction: str) -> str:
        """hash: the bucket of a node (expires)."""
        return self.key(f"bucket:{node_id}:{direction}")

    def pace(self, node_id: str, direction: str, *, together: bool = False) -> str:
        """hash: how long a node's calls take, or objects that go ``together`` do, and what it may be worked at for that (expires)."""
        return self.key(f"pace:{node_id}:{direction}{':together' if together else ''}")

    #: hash: pairs of nodes between which fewer objects are in flight than usual, and why (expires)
    @property
    def in_flight(self) -> str:  # noqa: D102
        return self.key("in_flight")

    #: counter: last fencing token given out
    @property
    def check_fence(self) -> str:  # noqa: D102
        return self.key("check:fence")

    #: zset: what each check saw and decided, compressed, by its time in ms
    @property
    def check_snapshots(self) -> str:  # noqa: D102
        return self.key("check:snapshots")

    #: hash: token of the check whose nodes are surveyed by tasks, what it was asked, when it began, last came on, is concluded
    @property
    def survey(self) -> str:  # noqa: D102
        return self.key("survey")

    #: set: nodes that are to be looked at still
    @property
    def survey_awaited(self) -> str:  # noqa: D102
        return self.key("survey:awaited")

    #: hash: node id -> "<owner> <until ms>" of who looks at it
    @property
    def survey_claims(self) -> str:  # noqa: D102
        return self.key("survey:claims")

    #: hash: node id -> JSON of what was found on it (expires, as the two below, unless a check renews it)
    @property
    def survey_findings(self) -> str:  # noqa: D102
        return self.key("survey:findings")

    #: hash: node id -> its candidates, packed Arrow columns
    @property
    def survey_rows(self) -> str:  # noqa: D102
        return self.key("survey:rows")

    #: hash: node id -> hashes of the keys of its other objects, 8 bytes each
    @property
    def survey_others(self) -> str:  # noqa: D102
        return self.key("survey:others")

    #: hash: "<token>/<node id>" -> JSON list of the keys at which a survey cuts it into ranges
    @property
    def survey_cuts(self) -> str:  # noqa: D102
        return self.key("survey:cuts")

    #: hash: node id -> its URL, of nodes that were seen not to list in order of keys
    @property
    def survey_unordered(self) -> str:  # noqa: D102
        return self.key("survey:unordered")

    #: string: hashes of the keys of all candidates, while it is asked where else they lie
    @property
    def survey_sought(self) -> str:  # noqa: D102
        return self.key("survey:sought")

    #: hash: node id -> those of them that lie there and are no candidates of its own
    @property
    def survey_met(self) -> str:  # noqa: D102
        return self.key("survey:met")

    #: hash: of what the last plan was made, that plan without its moves (JSON), and how many there are (expires)
    @property
    def survey_planned(self) -> str:  # noqa: D102
        return self.key("survey:planned")

    #: list of JSON records, newest first
    @property
    def checks(self) -> str:  # noqa: D102
        return self.key("checks")

    #: zset: plan id by creation time (ms)
    @property
    def plans(self) -> str:  # noqa: D102
        return self.key("plans")

    #: zset: job id by creation time (ms)
    @property
    def jobs(self) -> str:  # noqa: D102
        return self.key("jobs")

    #: string: id of the one active job
    @property
    def active(self) -> str:  # noqa: D102
        return self.key("active")

    #: hash: "<job>/<group>" -> permit number (the gate counts its fields)
    @property
    def permits(self) -> str:  # noqa: D102
        return self.key("permits")

    #: set: reasons for which the whole fleet is paused
    @property
    def paused(self) -> str:  # noqa: D102
        return self.key("paused")

    #: hash: node id -> state set at run time (wins over the file)
    @property
    def node_states(self) -> str:  # noqa: D102
        return self.key("node_states")

    #: hash: "<owner>/<node id>" -> when that owner (``operator``, ``missing``) began to hold the node (ms)
    @property
    def held_nodes(self) -> str:  # noqa: D102
        return self.key("held_nodes")

    #: hash: node id -> "<ms at which it went out of reach> <ms of the last sign of that>"
    @property
    def outages(self) -> str:  # noqa: D102
        return self.key("outages")

    #: hash: node id -> when we first wrote or accepted its node-id file (ms)
    @property
    def adopted(self) -> str:  # noqa: D102
        return self.key("adopted")

    #: hash: node id -> bytes of objects (last survey, kept current by flips)
    @property
    def usage(self) -> str:  # noqa: D102
        return self.key("usage")

    #: hash: node id -> bytes freed but still in the trash
    @property
    def awaiting(self) -> str:  # noqa: D102
        return self.key("awaiting")

    #: hash: object key -> "<target node>|<expires ms>"
    @property
    def forwarding(self) -> str:  # noqa: D102
        return self.key("forwarding")

    #: zset: object key, or NUL and the name of a batch, by when it was last moved (ms); feeds the cooldown and tells which forwardings are old
    @property
    def moved(self) -> str:  # noqa: D102
        return self.key("moved")

    #: hash: object key -> node id (placement overrides, or the catalogue)
    @property
    def locations(self) -> str:  # noqa: D102
        return self.key("locations")

    #: hash: object key -> "<token>|<expires ms>" of the one who writes it through the fleet right now
    @property
    def claims(self) -> str:  # noqa: D102
        return self.key("claims")

    #: hash: object key -> node on which it was written while anything moved: its only place, which no flip changes
    @property
    def written(self) -> str:  # noqa: D102
        return self.key("written")

    #: hash: "<node>\0<object key>" -> move id whose source copy is still to be freed
    @property
    def frees(self) -> str:  # noqa: D102
        return self.key("frees")

    #: hash: "<job>/<group>/<stretch>" -> record of a batch, as in ``frees:batches``, that was moved together
    @property
    def moved_batches(self) -> str:  # noqa: D102
        return self.key("moved:batches")

    #: hash: "<job>/<group>/<stretch>" -> record of a batch whose sources are still to be freed
    @property
    def frees_batches(self) -> str:  # noqa: D102
        return self.key("frees:batches")

    #: hash: move id -> JSON {source, target, key, fingerprint} of a copy to be taken off its target
    @property
    def undos(self) -> str:  # noqa: D102
        return self.key("undos")

    #: hash: move id -> JSON {node, key, size, fingerprint}
    @property
    def trash(self) -> str:  # noqa: D102
        return self.key("trash")

    #: hash: "<job>/<group>/<stretch>" -> record of a batch whose sources are in the trash, with their fingerprints
    @property
    def trash_batches(self) -> str:  # noqa: D102
        return self.key("trash:batches")

    #: zset: move id, or NUL and the name of a batch, by purge time (ms)
    @property
    def trash_due(self) -> str:  # noqa: D102
        return self.key("trash:due")

    #: hash: node id -> capacity in bytes, as the last survey found it
    @property
    def capacity(self) -> str:  # noqa: D102
        return self.key("capacity")

    #: stream: decisions and transitions {kind, job, by, data}, bounded
    @property
    def events(self) -> str:  # noqa: D102
        return self.key("events")

    #: hash: what ever was counted (moves of ended jobs, causes, checks, tasks) -> how often
    @property
    def counters(self) -> str:  # noqa: D102
        return self.key("counters")

    #: hash: receiver of notices -> "<last event told> <failed attempts> <due ms>"
    @property
    def notices(self) -> str:  # noqa: D102
        return self.key("notices")

    #: string: token of the one who delivers notices (expires)
    @property
    def notices_lock(self) -> str:  # noqa: D102
        return self.key("notices:lock")

    #: counter: last token given out for that
    @property
    def notices_fence(self) -> str:  # noqa: D102
        return self.key("notices:fence")

    #: hash: worker name -> JSON {digest, at, skew_ms, queues}
    @property
    def digests(self) -> str:  # noqa: D102
        return self.key("digests")

    #: hash: queue that nobody says to serve -> since when, and when workers were last asked, both in ms
    @property
    def deserted(self) -> str:  # noqa: D102
        return self.key("deserted")

    def plan(self, plan_id: str) -> str:
        """Hash: meta, n chunks of moves."""
        return self.key(f"plan:{plan_id}")

    def reserved(self, node_id: str) -> str:
        """Hash: "<job>/<group>" -> bytes promised on a node."""
        return self.key(f"reserved:{node_id}")

    def spend(self, day: str) -> str:
        """Hash: egress_bytes, cost_nano of a day (UTC)."""
        return self.key(f"spend:{day}")

    def accesses(self, day: str) -> str:
        """Hash: "r" or "w" and an object key -> reads or writes through the fleet on a day (UTC), from samples; "since" (ms)."""
        return self.key(f"accesses:{day}")

    def job(self, job_id: str) -> JobKeys:
        """Keys of one job."""
        return JobKeys(self.key(f"job:{job_id}"))


@dataclass(frozen=True, slots=True)
class JobKeys:
    """Keys of one job; ``base`` itself is its hash."""

    base: str

    #: string: one byte per move (see `core.states.MoveState`)
    @property
    def states(self) -> str:  # noqa: D102
        return self.base + ":states"

    #: hash: chunk number -> compressed moves
    @property
    def moves(self) -> str:  # noqa: D102
        return self.base + ":moves"

    #: hash: group id -> JSON of what never changes about it
    @property
    def groups(self) -> str:  # noqa: D102
        return self.base + ":groups"

    #: zset: groups waiting for a permit, lowest score first
    @property
    def queue(self) -> str:  # noqa: D102
        return self.base + ":queue"

    #: zset: groups that wait for a held node to be let go, with their scores at the gate
    @property
    def held(self) -> str:  # noqa: D102
        return self.base + ":held"

    #: hash: group whose header is out and was not picked up yet -> its data queue
    @property
    def waiting(self) -> str:  # noqa: D102
        return self.base + ":waiting"

    #: hash: move index -> JSON of its progress, in flight only
    @property
    def journal(self) -> str:  # noqa: D102
        return self.base + ":journal"

    #: hash: move index -> JSON {cause, detail}, failed and skipped only
    @property
    def outcomes(self) -> str:  # noqa: D102
        return self.base + ":outcomes"

    #: hash: cause -> count
    @property
    def causes(self) -> str:  # noqa: D102
        return self.base + ":causes"

    #: set: reasons for which the job is paused
    @property
    def paused(self) -> str:  # noqa: D102
        return self.base + ":paused"

    def group(self, group_id: str) -> str:
        """Hash: status, permit, last epoch, open stretches, left, counts."""
        return f"{self.base}:g:{group_id}"

    def lease(self, group_id: str, stretch: int) -> str:
        """Hash: epoch, owner, lease_until of a stretch that was begun and is not done; journals of its batches (``j:…``)."""
        return f"{self.group(group_id)}:l:{stretch}"

    def throttle(self, group_id: str) -> str:
        """Hash: tokens, at (µs)."""
        return f"{self.base}:t:{group_id}"

    def all_fixed(self) -> tuple[str, ...]:
        """Every key of the job except those of its groups."""
        return (
            self.base,
            self.states,
            self.moves,
            self.groups,
            self.queue,
            self.held,
            self.waiting,
            self.journal,
            self.outcomes,
            self.causes,
            self.paused,
        )
