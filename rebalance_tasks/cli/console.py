"""``rebalance console``: the web console in the foreground."""

from __future__ import annotations

import os
import sys
from pathlib import Path  # noqa: TC003  typer reads it at run time
from typing import Annotated

import typer

from rebalance_tasks.cli import output, session
from rebalance_tasks.core.errors import ConfigurationError


def console(
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; anything but loopback needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8580,
    certificate: Annotated[Path | None, typer.Option("--tls-cert", metavar="PEM", help="Serve HTTPS.")] = None,
    key: Annotated[Path | None, typer.Option("--tls-key", metavar="PEM", help="Key of --tls-cert.")] = None,
) -> None:
    """Serve the web console: see the fleet, its plans and jobs, and steer them. Ctrl-C ends it."""
    try:
        from rebalance_tasks.console import access, server  # noqa: PLC0415  an extra, and heavy
    except ModuleNotFoundError as exc:
        msg = f"the console needs the package {exc.name}; install rebalance-tasks[console]"
        raise ConfigurationError(msg) from exc
    tokens, made = server.usable_tokens(access.load_tokens(os.environ), host, may_show=sys.stderr.isatty())
    scheme = "https" if certificate else "http"
    shown = f"[{host}]" if ":" in host else host
    told = output.console(stderr=True)
    told.print(f"console of the fleet at {scheme}://{shown}:{port}/  (Ctrl-C ends it)", markup=False)
    if made:
        told.print(f"operator's token, for this run only: {made}", markup=False)
    from rebalance_tasks.telemetry import configure_logging  # noqa: PLC0415  a look at a job waits for no structlog

    configure_logging()
    client = session.open_client()
    files = {"certificate": str(certificate or ""), "key": str(key or "")}
    server.serve(client, tokens, host=host, port=port, **files)
