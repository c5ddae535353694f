"""What happens to a simulated fleet, and when: the scenario that `simulation` plays. Values only.

A scenario comes from a TOML file (a table of three numbers and a list of events) or from event lines, which hold the same
fields in one line: ``"10 drain node_id=n2"``.
"""

from __future__ import annotations

import tomllib
from datetime import timedelta
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError, field_validator

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.models import Frozen, Identifier, NodeDescriptor, Size, Unit
from rebalance_tasks.core.options import Duration

#: Enough to see a drain or a month of growth; the flag and the file say otherwise.
DEFAULT_CYCLES: Final = 20


class _Event(Frozen):
    """Something that happens just before a cycle's check."""

    cycle: PositiveInt


class Growth(_Event):
    """From this cycle on so many bytes are written in each cycle.

    Attributes:
        bytes: per cycle, in objects whose sizes are drawn from those there are.
        until: the last cycle; ``None`` is the end.
        nodes: where; none named is every active node, in proportion to its capacity.
    """

    kind: Literal["growth"] = "growth"
    bytes: Size
    until: PositiveInt | None = None
    nodes: tuple[Identifier, ...] = ()

    @field_validator("nodes", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return _names(value)

    def __str__(self) -> str:
        return f"growth of {self.bytes / 10**9:g} GB a cycle" + (f" on {', '.join(self.nodes)}" if self.nodes else "")


class Add(_Event):
    """A node joins, empty."""

    kind: Literal["add"] = "add"
    node: NodeDescriptor

    def __str__(self) -> str:
        return f"{self.node.node_id} added"


class Lose(_Event):
    """A node is gone with all it held.

    Attributes:
        restore: what it held comes back (from a backup, from replicas) on the other nodes of its pool, spread by capacity.
    """

    kind: Literal["lose"] = "lose"
    node_id: Identifier
    restore: bool = False

    def __str__(self) -> str:
        return f"{self.node_id} lost" + (" and restored elsewhere" if self.restore else "")


class Drain(_Event):
    """A node is to be emptied."""

    kind: Literal["drain"] = "drain"
    node_id: Identifier

    def __str__(self) -> str:
        return f"{self.node_id} drained"


class Activate(_Event):
    """A node takes and gives again."""

    kind: Literal["activate"] = "activate"
    node_id: Identifier

    def __str__(self) -> str:
        return f"{self.node_id} activated"


class Heat(_Event):
    """Other objects are hot now: those chosen before cool down to what they were.

    Attributes:
        share: of the objects that match, drawn by the seed.
        gravity: of the hot objects; at `gravity_protection_threshold` or above they stay where they are.
        nodes: only objects there; none named is everywhere.
        prefix: only keys that begin so.
    """

    kind: Literal["heat"] = "heat"
    share: Unit = 0.1
    gravity: Unit = 0.95
    nodes: tuple[Identifier, ...] = ()
    prefix: str = ""

    @field_validator("nodes", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return _names(value)

    def __str__(self) -> str:
        where = f" on {', '.join(self.nodes)}" if self.nodes else ""
        return f"{self.share:.0%} of the objects{where} hot"


Event = Annotated[Growth | Add | Lose | Drain | Activate | Heat, Field(discriminator="kind")]
_EVENT: Final[TypeAdapter[Event]] = TypeAdapter(Event)
_KINDS: Final = tuple(kind.model_fields["kind"].default for kind in get_args(get_args(Event)[0]))


class Scenario(Frozen):
    """A simulation's course.

    Attributes:
        cycles: checks to play.
        every: from one check to the next; a plan that takes longer delays the next. ``None`` is the fleet's `check_interval`.
        seed: of what is drawn: sizes and places of growth, what turns hot.
        events: in any order.
    """

    cycles: PositiveInt = DEFAULT_CYCLES
    every: Duration | None = None
    seed: NonNegativeInt = 1
    events: tuple[Event, ...] = ()

    @field_validator("every")
    @classmethod
    def _forward(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value <= timedelta(0):
            msg = "every: must be longer than 0"
            raise ValueError(msg)
        return value


def parse_scenario(text: str, *, source: str = "scenario") -> Scenario:
    """Read a scenario from TOML.

    Args:
        text: the file's content.
        source: its name, for errors.

    Raises:
        InvalidArgument: names the field, the value and what is allowed.
    """
    try:
        return Scenario.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as exc:
        msg = f"{source}: not valid TOML: {exc}; events are written [[events]]"
        raise InvalidArgument(msg) from exc
    except ValidationError as exc:
        msg = f"{source}: {_told(exc)}"
        raise InvalidArgument(msg) from exc


def parse_event(text: str) -> Event:
    """Read an event line: the cycle, the kind, then ``field=value`` (``"10 add node_id=n9 capacity_bytes=4TB"``).

    Raises:
        InvalidArgument: names what is wrong.
    """
    cycle, _, rest = text.strip().partition(" ")
    kind, *pairs = rest.split() or [""]
    if not cycle.isdecimal() or kind not in _KINDS or not all("=" in pair for pair in pairs):
        msg = f"event {text!r}: write CYCLE KIND field=value …, with a KIND of {', '.join(_KINDS)}; e.g. '10 drain node_id=n2'"
        raise InvalidArgument(msg)
    fields: dict[str, Any] = dict(pair.split("=", 1) for pair in pairs)
    if kind == "add":
        fields = {"node": fields}
    try:
        return _EVENT.validate_python({"cycle": int(cycle), "kind": kind, **fields})
    except ValidationError as exc:
        msg = f"event {text!r}: {_told(exc)}"
        raise InvalidArgument(msg) from exc


def parse_node(text: str) -> NodeDescriptor:
    """Read a node from one line of ``field=value`` (``"node_id=n9 capacity_bytes=4TB zone=b"``).

    Raises:
        InvalidArgument: names what is wrong.
    """
    pairs = text.split()
    if not pairs or not all("=" in pair for pair in pairs):
        msg = f"node {text!r}: write field=value …, e.g. 'node_id=n9 weight=2 zone=b'"
        raise InvalidArgument(msg)
    try:
        return NodeDescriptor.model_validate(dict(pair.split("=", 1) for pair in pairs))
    except ValidationError as exc:
        msg = f"node {text!r}: {_told(exc)}"
        raise InvalidArgument(msg) from exc


def _told(error: ValidationError) -> str:
    parts = []
    for found in error.errors():
        place = ".".join(str(part) for part in found["loc"] if part not in _KINDS)
        what = found["msg"].removeprefix("Value error, ")
        parts.append(f"{place}: {what}" if place else what)
    return "; ".join(parts)


def _names(value: object) -> object:
    """Node ids, also as ``"n1,n2"``."""
    return tuple(value.split(",")) if isinstance(value, str) else value
