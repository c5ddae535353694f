"""Every error the project raises, under one root.

An error carries the facts as attributes and says what to do next; its docstring doubles as the message template's story.
Third-party errors are translated at the adapter that met them (``raise NodeMissing(...) from exc``).
"""

from __future__ import annotations

from typing import Final

#: Enough of a key to recognise it in a log line.
SHOWN_KEY: Final = 80


class RebalanceError(Exception):
    """Root of every error raised by this package.

    Attributes:
        cause: a short, stable, machine-readable word for counts, metrics and JSON (``"node_missing"``).
    """

    cause: str = "error"


class RetryableError(RebalanceError):
    """Trying again later may succeed: the world, not the request, is at fault."""

    cause = "retryable"


class PermanentError(RebalanceError):
    """Trying again without a change will fail the same way."""

    cause = "permanent"


class ConfigurationError(PermanentError, ValueError):
    """A setting is wrong; the message names field, value, allowed range and the way out."""

    cause = "configuration"


class InvalidArgument(PermanentError, ValueError):
    """An argument of a task, a command or a call is wrong."""

    cause = "invalid_argument"


class InvalidKey(InvalidArgument):
    """An object key cannot be confined to its node's root."""

    cause = "invalid_key"

    def __init__(self, key: str, why: str) -> None:
        """Name the key (shortened, escaped) and the rule it breaks."""
        shown = ascii(key if len(key) <= SHOWN_KEY else key[:SHOWN_KEY] + "…")
        super().__init__(f"object key {shown} refused: {why}")
        self.key = key
        self.why = why


class JobNotFound(PermanentError, KeyError):
    """No job with this id is known to the fleet."""

    cause = "job_not_found"

    def __init__(self, job_id: str) -> None:
        """Name the job."""
        super().__init__(f"no job {job_id!r} in this fleet; `rebalance jobs` lists the known ones")
        self.job_id = job_id

    def __str__(self) -> str:
        """The plain message (KeyError would quote it)."""
        return str(self.args[0])


class PlanNotFound(PermanentError, KeyError):
    """No plan with this id is known to the fleet (plans are kept for a limited time)."""

    cause = "plan_not_found"

    def __init__(self, plan_id: str) -> None:
        """Name the plan."""
        super().__init__(f"no plan {plan_id!r} in this fleet; `rebalance plan` makes a new one")
        self.plan_id = plan_id

    def __str__(self) -> str:
        """The plain message (KeyError would quote it)."""
        return str(self.args[0])


class ObjectNotFound(PermanentError, KeyError):
    """No node of the fleet holds an object under this key."""

    cause = "object_not_found"

    def __init__(self, key: str) -> None:
        """Name the key."""
        super().__init__(f"no node holds an object {key!r}")
        self.key = key

    def __str__(self) -> str:
        """The plain message (KeyError would quote it)."""
        return str(self.args[0])


class UnknownFleet(PermanentError, KeyError):
    """A message or call named a fleet this process is not configured for."""

    cause = "unknown_fleet"

    def __init__(self, fleet: str, configured: str) -> None:
        """Name both fleets."""
        super().__init__(
            f"fleet {fleet!r} is not configured here (this process serves {configured!r}); see rebalance.toml [fleet] name"
        )
        self.fleet = fleet

    def __str__(self) -> str:
        """The plain message (KeyError would quote it)."""
        return str(self.args[0])


class JobActive(RetryableError):
    """Another job of the fleet is active; a fleet runs one job at a time."""

    cause = "job_active"

    def __init__(self, job_id: str) -> None:
        """Name the active job."""
        super().__init__(
            f"job {job_id!r} is still active in this fleet; wait for it, or cancel it with `rebalance cancel {job_id}`"
        )
        self.job_id = job_id


class InvalidTransition(PermanentError):
    """A job or group cannot go from its present state to the one asked for."""

    cause = "invalid_transition"

    def __init__(self, subject: str, current: str, wanted: str) -> None:
        """Name the subject and both states."""
        super().__init__(f"{subject} is {current} and cannot become {wanted}")
        self.current = current
        self.wanted = wanted


class StaleLease(RetryableError):
    """The lease this writer holds is no longer the newest; its writes are refused (fencing)."""

    cause = "stale_lease"


class EmptyClusterError(PermanentError, ValueError):
    """No node is eligible; the message names the constraint that emptied the set."""

    cause = "no_eligible_node"


class InvalidInventory(PermanentError, ValueError):
    """An inventory row is impossible (negative size, duplicate, unknown node); the message names the row."""

    cause = "invalid_inventory"


class PlanInvariantError(PermanentError):
    """A plan breaks an invariant; `verify_plan` refuses it before a byte moves.

    Attributes:
        word: stable word for the rule, under which moves that broke it are counted.
    """

    cause = "plan_invariant"

    def __init__(self, message: str, *, word: str = "invalid") -> None:
        """Say which rule is broken, and by which move."""
        super().__init__(message)
        self.word = word


class NodeError(RebalanceError):
    """Something is wrong with one node."""

    cause = "node"

    def __init__(self, node_id: str, message: str) -> None:
        """Name the node and say what to do."""
        super().__init__(f"node {node_id!r}: {message}")
        self.node_id = node_id


class NodeMissing(NodeError, RetryableError):
    """A node's root is missing, unmounted or carries another node's identity: missing is never empty."""

    cause = "node_missing"


class NodeNotWritable(NodeError, PermanentError):
    """A node's root cannot be written to."""

    cause = "node_not_writable"


class NodeFull(NodeError, RetryableError):
    """A node has no room for an object (file system full, quota, or all room reserved)."""

    cause = "target_full"


class UnknownNode(NodeError, PermanentError):
    """A message or plan names a node that is not configured."""

    cause = "unknown_node"

    def __init__(self, node_id: str, where: str = "here") -> None:
        """Name the node, and where it is not configured."""
        super().__init__(node_id, f"not configured {where}; see [[nodes]] in rebalance.toml")


class MoveError(RebalanceError):
    """One object cannot go its way; the job goes on.

    Attributes:
        key: the object's key.
    """

    cause = "move"

    def __init__(self, key: str, message: str) -> None:
        """Name the object."""
        super().__init__(f"{message} (object {key!a})")
        self.key = key


class SourceVanished(MoveError, PermanentError):
    """The source object is gone and no manifest says that we moved it."""

    cause = "source_vanished"


class SourceChanged(MoveError, RetryableError):
    """The source changed while it was copied; the copy is thrown away and made again."""

    cause = "source_changed"


class ObjectUnreadable(MoveError, PermanentError):
    """The source object cannot be read or freed (permissions, I/O error, not a regular file)."""

    cause = "unreadable"


class TargetExists(MoveError, PermanentError):
    """A different object already sits under this key on the target; publishing never overwrites."""

    cause = "target_exists"


class CatalogueRefused(MoveError, PermanentError):
    """The host's catalogue does not send readers to the copy that was made: it keeps the object where it is, or has it elsewhere."""

    cause = "catalogue_refused"


class ChecksumMismatch(MoveError, RetryableError):
    """The copy read back differs from what was read from the source."""

    cause = "checksum_mismatch"


class CatalogueUnreachable(RetryableError):
    """The host's catalogue did not answer, or not as it must; whether it did what it was asked is not known."""

    cause = "catalogue_unreachable"

    def __init__(self, source: str, what: str) -> None:
        """Name the provider, and what it was asked."""
        super().__init__(
            f"[fleet] catalogue = {source!r} did not answer: {what}; see that it is up, jobs wait for it and go on by themselves"
        )


class ServerUnavailable(RetryableError):
    """The embedded Redis-compatible server cannot be found or did not start; the message says what to install or read."""

    cause = "server_unavailable"
