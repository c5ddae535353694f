"""``rebalance metrics``: the endpoint that Prometheus scrapes."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Final

import typer

from rebalance_tasks.cli import session
from rebalance_tasks.core.errors import ConfigurationError

#: Not taken by any exporter that we know of.
DEFAULT_PORT: Final = 9817


def metrics(
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; what is served asks no password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = DEFAULT_PORT,
    once: Annotated[bool, typer.Option("--once", help="Print the metrics once instead of serving them.")] = False,
) -> None:
    """Serve the fleet's metrics to Prometheus until interrupted; they are read from Redis at each scrape."""
    from prometheus_client import generate_latest, start_http_server  # noqa: PLC0415

    client = session.open_client()
    registry = client.metrics_registry()
    if once:
        sys.stdout.write(generate_latest(registry).decode())
        return
    ends = {signal.SIGINT, signal.SIGTERM}
    # Before the server's threads begin, so that the signal finds only us.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        server, _ = start_http_server(port, addr=host, registry=registry)
        server.set_app(client.metrics_app())
        typer.echo(f"http://{host}:{server.server_port}/metrics")
        signal.sigwait(ends)
        server.shutdown()
    except OSError as exc:
        msg = f"cannot listen on {host}:{port}: {exc.strerror or exc}; is another one running? --port takes another"
        raise ConfigurationError(msg) from exc
    finally:
        # Whoever called us in a process of theirs can be interrupted again, and so can the processes that it starts.
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
