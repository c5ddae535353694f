"""``rebalance doctor``: what was found, a line each, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.text import Text

from rebalance_tasks.cli.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from rebalance_tasks.control.examining.findings import Finding

STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def findings_table(findings: Iterable[Finding]) -> RenderableType:
    """All findings, a line each, and below what is not well what to do."""
    made = table("", "WHAT", "FOUND")
    for finding in findings:
        made.add_row(Text(finding.verdict, style=STYLES[finding.verdict]), Text(finding.name), Text(finding.detail))
        if finding.next_step and finding.verdict != "ok":
            made.add_row("", "", Text(f"→ {finding.next_step}", style="italic"))
    return made
