"""Fleets of real directories for tests: a ``rebalance.toml``, its nodes, and their files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

#: An object's content, or a number of bytes to make up.
Content = bytes | int


@dataclass(frozen=True)
class NodeSpec:
    """A directory node: its files, and whatever else its ``[[nodes]]`` table should say."""

    files: Mapping[str, Content] = field(default_factory=dict)
    capacity_bytes: int | None = 1_000_000
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fleet:
    """What was written: where the configuration is, and where each node's directory is."""

    config: Path
    redis_url: str
    roots: Mapping[str, Path]

    def objects(self, node_id: str) -> dict[str, bytes]:
        """Read every object of a node from disk, ours (``.rebalance/``) left out."""
        root = self.roots[node_id]
        files = (path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink())
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in files
            if path.relative_to(root).parts[0] != ".rebalance"
        }

    def all_objects(self) -> dict[str, bytes]:
        """Read every object of the fleet; an object on two nodes fails the test."""
        found: dict[str, bytes] = {}
        for node_id in self.roots:
            for key, content in self.objects(node_id).items():
                assert key not in found, f"{key} lies on two nodes"
                found[key] = content
        return found

    def used_bytes(self, node_id: str) -> int:
        """Sum the sizes of a node's objects."""
        return sum(len(content) for content in self.objects(node_id).values())

    def leftovers(self) -> list[str]:
        """List the temporary files on all nodes."""
        return [str(path) for root in self.roots.values() for path in root.glob(".rebalance/tmp/*")]


def made_up(key: str, size: int) -> bytes:
    """Return ``size`` bytes that depend on the key, so that swapped contents are noticed."""
    return hashlib.shake_128(key.encode("utf-8", "surrogateescape")).digest(size)


def toml_value(value: Any) -> str:
    """Write a value as TOML: scalars, lists, and tables inline."""
    match value:
        case Mapping():
            return "{" + ", ".join(f"{json.dumps(key)} = {toml_value(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(toml_value(item) for item in value) + "]"
        case bool() | int() | float() | str():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return json.dumps(str(value), ensure_ascii=False)


def toml_table(table: Mapping[str, Any]) -> str:
    """Write the pairs of a table, a line each; ``None`` is left out."""
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in table.items() if value is not None)


def write_fleet(
    directory: Path,
    *,
    redis_url: str,
    nodes: Mapping[str, NodeSpec | Mapping[str, Content]],
    options: Mapping[str, Any] | None = None,
    fleet: Mapping[str, Any] | None = None,
) -> Fleet:
    """Write the nodes' files and the ``rebalance.toml`` that describes them.

    Args:
        directory: gets ``rebalance.toml`` and ``nodes/<node_id>/``.
        redis_url: of the fleet's state (and broker).
        nodes: node_id -> `NodeSpec`, or only its files (key -> content or size).
        options: of ``[options]``; what a test needs at once (no minimal age, no grace) is preset.
        fleet: of ``[fleet]``; mode ``auto`` and locator ``union`` are preset.
    """
    roots: dict[str, Path] = {}
    tables: list[str] = []
    for node_id, given in nodes.items():
        spec = given if isinstance(given, NodeSpec) else NodeSpec(files=given)
        root = roots[node_id] = directory / "nodes" / node_id
        root.mkdir(parents=True, exist_ok=True)
        for key, content in spec.files.items():
            path = root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else made_up(key, content))
        described = {"node_id": node_id, "url": root.as_uri(), "capacity_bytes": spec.capacity_bytes, **spec.settings}
        tables.append("[[nodes]]\n" + toml_table(described))
    fleet_table = {"name": "test", "mode": "auto", "locator": "union", "redis_url": redis_url, "survey_dir": "none"}
    fleet_table |= fleet or {}
    option_table = {"min_object_age": "0s", "grace": "0s", **(options or {})}
    config = directory / "rebalance.toml"
    text = "\n".join(["[fleet]\n" + toml_table(fleet_table), "[options]\n" + toml_table(option_table), *tables])
    config.write_text(text, encoding="utf-8")
    return Fleet(config=config, redis_url=redis_url, roots=roots)
