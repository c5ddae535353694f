"""Figures, their limits and their samples: one table in the terminal, one JSON file to keep."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure.

    Attributes:
        value: what is compared with ``limit`` (a ratio first, else seconds).
        limit: the highest value that passes; ``None`` only reports.
        samples: all runs, by series.
    """

    name: str
    value: float
    unit: str
    limit: float | None
    command: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    detail: str = ""

    @property
    def missed(self) -> bool:
        """Whether the figure is over its limit."""
        return self.limit is not None and self.value > self.limit


class Report:
    """Collects figures."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.console = Console()

    def add(self, figure: Figure) -> None:
        """Keep a figure and say it."""
        self.figures.append(figure)
        limit = "" if figure.limit is None else f" (limit {figure.limit:g})"
        self.console.print(
            f"{'✗' if figure.missed else '✓'} {figure.name}: {figure.value:.3g} {figure.unit}{limit}  {figure.detail}"
        )

    def skip(self, name: str, why: str) -> None:
        """Say that a figure was not measured."""
        self.console.print(f"– {name}: skipped, {why}")

    def table(self) -> Table:
        """All figures."""
        table = Table(title=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        for column in ("figure", "value", "limit", "", "command"):
            table.add_column(column, overflow="fold")
        for figure in self.figures:
            limit = "–" if figure.limit is None else f"{figure.limit:g}"
            table.add_row(
                figure.name,
                f"{figure.value:.3g} {figure.unit}",
                limit,
                "missed" if figure.missed else "ok",
                figure.command,
            )
        return table

    def write(self, path: Path) -> None:
        """Write every sample as JSON."""
        document: dict[str, Any] = {
            "at": datetime.now(tz=UTC).isoformat(),
            "machine": {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
            "figures": [{**asdict(figure), "missed": figure.missed} for figure in self.figures],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
