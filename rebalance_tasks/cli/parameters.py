"""Parameters that several commands take, each written once."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Job = Annotated[
    str | None, typer.Argument(metavar="JOB", help="Job id; may be left out when exactly one job is active.")
]
All = Annotated[bool, typer.Option("--all", help="The whole fleet: its active job, and every check and job to come.")]
Node = Annotated[
    str | None, typer.Option("--node", metavar="NODE", help="One node: only the groups that touch it, in every job.")
]
