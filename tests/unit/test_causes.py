"""Every cause that the code can note has a way out; the causes are read off the code, so none is forgotten."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import rebalance_tasks
from rebalance_tasks.control.causes import HINTS, UNKNOWN, hint
from rebalance_tasks.control.retry import TRANSIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE: Final = Path(rebalance_tasks.__file__).parent
#: Errors that are told to whoever called, and never noted of a move.
NOT_OF_MOVES: Final = {
    "write_in_doubt",
    "job_not_found",
    "plan_not_found",
    "object_not_found",
    "unknown_fleet",
    "job_active",
    "invalid_transition",
    "stale_lease",
    "no_eligible_node",
    "invalid_inventory",
    "plan_invariant",
    "server_unavailable",
    "interrupted",
}
#: Where the errors stand that a runner may note of a move (Redis away is no outcome: the runner stops).
OF_RUNNERS: Final = ("core/errors.py", "migration/", "drivers/", "tasks.py", "control/")


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def text(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def causes_of_errors(tree: ast.Module) -> Iterator[str]:
    """``cause = "…"`` in the body of a class."""
    for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for line in owner.body:
            targets = line.targets if isinstance(line, ast.Assign) else []
            targets = [line.target] if isinstance(line, ast.AnnAssign) else targets
            if any(isinstance(target, ast.Name) and target.id == "cause" for target in targets):
                value = line.value  # type: ignore[attr-defined]
                yield from filter(None, [text(value)])


def causes_of_settlements(tree: ast.Module) -> Iterator[str]:
    """Words given as the cause when a move is ended, and the refusals of a batch."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {"end", "Settlement"}:
            yield from filter(None, map(text, node.args[2:3]))
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "REFUSALS" and node.value is not None:
            yield from ast.literal_eval(node.value)
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) in {"FREE_PENDING", "STATE_LOST"}:
            yield text(node.value) or "?"


def causes_of_stale_plans(tree: ast.Module) -> Iterator[str]:
    """The words of the verifier's rules, and those of the look at the objects."""
    words: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {"note", "_age"}:
            words += node.args[2:][-1:]
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            words += node.value.elts[1:]
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "Final":
            words.append(node.value)
    yield from (f"stale_plan_{word}" for word in filter(None, map(text, words)))


def causes_in_the_code() -> set[str]:
    found: set[str] = set()
    for path, tree in trees():
        found |= set(causes_of_settlements(tree))
        if path.startswith(OF_RUNNERS):
            found |= set(causes_of_errors(tree))
        if path in {"core/verifying/moves.py", "control/recheck.py"}:
            found |= set(causes_of_stale_plans(tree))
    return found - NOT_OF_MOVES


def causes_in_the_scripts() -> set[str]:
    """Causes that a Lua script counts by itself."""
    found: set[str] = set()
    for path in sorted(PACKAGE.glob("store/lua/*.lua")):
        source = path.read_text(encoding="utf-8")
        number = re.search(r"(\d+) causes", source)
        if number:
            found |= set(re.findall(rf"'HINCRBY', KEYS\[{number[1]}\], '([a-z_]+)'", source))
    return found


def test_the_code_is_read_rightly() -> None:
    expected = {"target_exists", "worker_died", "unexpected_error", "budget_cost_day", "conflict", "free_pending"}
    assert (
        expected | {"cancelled", "stale_plan_source_gone", "stale_plan_node_state", "stale_plan_cooldown"}
        <= causes_in_the_code()
    )
    assert causes_in_the_scripts() == {"cancelled"}


def test_every_cause_in_the_code_has_a_way_out() -> None:
    assert (causes_in_the_code() | causes_in_the_scripts()) - HINTS.keys() == set()


@pytest.mark.parametrize("cause", sorted(HINTS))
def test_a_way_out_is_a_short_line_that_says_what_to_do(cause: str) -> None:
    line = hint(cause, job_id="j1")
    assert 15 < len(line) < 160
    assert "JOB" not in line
    assert "\n" not in line


def test_a_cause_of_another_release_has_a_way_out_too() -> None:
    assert hint("from_the_future", job_id="j1") == UNKNOWN.replace("JOB", "j1")


def test_what_a_retry_takes_along_are_causes_that_are_known() -> None:
    assert causes_in_the_code() >= TRANSIENT
