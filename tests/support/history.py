"""A history of reads, writes and removals of keys, and whether it is linearizable: each took effect at one instant between its begin and its end.

Each key is a register of its own, so each is judged by itself (Herlihy and Wing 1990, locality). The search is Wing and Gong's
(1993) with memory of what was seen: few operations of one key overlap, so it stays short.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Op:
    """One call.

    Attributes:
        kind: ``read``, ``write`` or ``remove``.
        begun: seconds on the clock that all processes of this machine share.
        ended: likewise.
        value: id of what was read or written; ``None``: nothing was there.
        error: what the call failed with; a read that failed says nothing, a change that failed may have been made or not.
    """

    key: str
    kind: str
    begun: float
    ended: float
    value: str | None = None
    error: str = ""


def write_log(path: Path, ops: Iterable[Op]) -> None:
    path.write_text("".join(f"{json.dumps(asdict(op))}\n" for op in ops), encoding="utf-8")


def read_log(path: Path) -> list[Op]:
    return [Op(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


class Step(NamedTuple):
    """An operation as the search sees it."""

    begun: float
    ended: float
    reads: bool
    value: str | None
    may_be_missing: bool


def steps_of(ops: Iterable[Op]) -> list[Step]:
    """What counts of one key's operations."""
    steps: list[Step] = []
    for op in ops:
        if op.kind == "read":
            if not op.error:
                steps.append(Step(op.begun, op.ended, True, op.value, False))
            continue
        value = op.value if op.kind == "write" else None
        # Of a change that failed nobody knows when, or whether, it takes effect.
        steps.append(Step(op.begun, math.inf if op.error else op.ended, False, value, bool(op.error)))
    return sorted(steps)


def linearizable(steps: Sequence[Step], initial: str | None) -> bool:
    """Whether the steps, sorted by their begins, can be put in an order that a register would show."""
    count = len(steps)
    seen: set[tuple[int, frozenset[int], str | None]] = set()
    # (all before this one are done, those after it that are done, what the register holds)
    todo: list[tuple[int, frozenset[int], str | None]] = [(0, frozenset(), initial)]
    while todo:
        first, done, held = todo.pop()
        while first in done:
            done -= {first}
            first += 1
        if first >= count:
            return True
        if (first, done, held) in seen:
            continue
        seen.add((first, done, held))
        todo += _next(steps, first, done, held)
    return False


def _next(
    steps: Sequence[Step], first: int, done: frozenset[int], held: str | None
) -> list[tuple[int, frozenset[int], str | None]]:
    """What can come next: any step that began before every other that is not done has ended."""
    found: list[tuple[int, frozenset[int], str | None]] = []
    earliest_end = math.inf
    for place in range(first, len(steps)):
        step = steps[place]
        if step.begun > earliest_end:
            break
        if place in done:
            continue
        earliest_end = min(earliest_end, step.ended)
        if step.may_be_missing:
            found.append((first, done | {place}, held))
        if step.reads and step.value != held:
            continue
        found.append((first, done | {place}, held if step.reads else step.value))
    return found


def violations(ops: Iterable[Op], initial: Mapping[str, str]) -> list[str]:
    """Keys whose history no register could have shown, each with its operations."""
    by_key: defaultdict[str, list[Op]] = defaultdict(list)
    for op in ops:
        by_key[op.key].append(op)
    found: list[str] = []
    for key, some in sorted(by_key.items()):
        if not linearizable(steps_of(some), initial.get(key)):
            told = "\n".join(f"  {op}" for op in sorted(some, key=lambda op: op.begun))
            found.append(f"{key} (at first {initial.get(key)}):\n{told}")
    return found
