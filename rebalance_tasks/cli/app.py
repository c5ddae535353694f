"""The commands. Each is a call of the client and a way to print the answer; heavy modules load inside the command."""

from __future__ import annotations

import os
from copy import copy
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rebalance_tasks.cli import (
    checks,
    console,
    events,
    init,
    metrics,
    node_states,
    output,
    placement,
    plan,
    session,
    simulate,
    throttles,
    undo,
    upkeep,
)
from rebalance_tasks.cli.output import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, emit
from rebalance_tasks.cli.parameters import All, Job, Json, Node
from rebalance_tasks.core.masking import masked_url
from rebalance_tasks.core.states import RebalanceStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from typer.models import CommandInfo, TyperInfo

    from rebalance_tasks.core.models import ControlResult

app = typer.Typer(
    name="rebalance",
    help="Keep a fleet of storage nodes balanced: watch, plan, and move objects in the background.",
    epilog="New here? `rebalance demo` balances a fleet of real files before your eyes.",
    pretty_exceptions_enable=False,
)

Preset = Literal["default", "aggressive", "conservative"]


def run(argv: Sequence[str]) -> int:
    """Run a command line and return its exit code; whatever is raised becomes one clear line."""
    if not argv and "_REBALANCE_COMPLETE" not in os.environ:  # set by a shell that asks what may come next
        run(["--help"])
        return EXIT_USAGE
    options = argv[: argv.index("--")] if "--" in argv else argv
    as_json = "--json" in options
    try:
        return int(_app_for(options)(list(argv), prog_name="rebalance", standalone_mode=False) or 0)
    except typer.TyperException as exc:  # usage: an unknown command, a missing argument
        if as_json:
            output.print_json({"error": exc.format_message(), "cause": "usage"})
        typer.echo(f"error: {exc.format_message()}\n`rebalance {_command(options)}--help` says more.", err=True)
        return EXIT_USAGE
    except (KeyboardInterrupt, typer.Abort):
        output.console(stderr=True).print("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `rebalance jobs | head`: not worth a word, and nothing left to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_FAILED
    except Exception as exc:  # noqa: BLE001  the outermost boundary: told apart in report_error
        return output.report_error(exc, as_json=as_json)


def _app_for(argv: Sequence[str]) -> typer.Typer:
    """Return the app without the commands that ``argv`` does not name: typer takes a millisecond to build each."""
    words, narrowed = set(argv), copy(app)
    narrowed.registered_commands = [command for command in app.registered_commands if _name(command) in words]
    narrowed.registered_groups = [group for group in app.registered_groups if _name(group) in words]
    return app if argv[:1] == ["--help"] or not names(narrowed) else narrowed


def names(of: typer.Typer) -> set[str]:
    """Return the names of an app's commands."""
    return set(map(_name, of.registered_commands)) | set(map(_name, of.registered_groups))


def _command(argv: Sequence[str]) -> str:
    """Return the command that was meant, for the hint at its help."""
    known = names(app)
    return next((f"{word} " for word in argv if word in known), "")


def _name(command: CommandInfo | TyperInfo) -> str:
    return str(command.name or getattr(command.callback, "__name__", "").replace("_", "-"))


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

        try:
            typer.echo(f"rebalance {version('rebalance-tasks')}")
        except PackageNotFoundError:
            typer.echo("rebalance (a source tree that is not installed; `make install` installs it)")
        raise typer.Exit


@app.callback()
def main_options(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="PATH",
            help="rebalance.toml to use (default: $REBALANCE_CONFIG, else ./rebalance.toml).",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001  its callback prints and ends
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep a fleet of storage nodes balanced: watch, plan, and move objects in the background."""
    if config is not None:
        # The environment, not an argument: whatever this command starts serves the same fleet.
        os.environ["REBALANCE_CONFIG"] = str(config.absolute())


@app.command(epilog="Example: rebalance demo --from ~/Pictures --keep")
def demo(
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="DIR", help="Copy files of this directory (default: Python's own library and packages)."
        ),
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=3, max=24, help="How many nodes to build.")] = 6,
    seed: Annotated[int, typer.Option("--seed", help="Another seed fills the nodes differently.")] = 1,
    preset: Annotated[Preset, typer.Option("--preset", help="Options to run with.")] = "default",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the directory and say how to look around.")] = False,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", metavar="D", help="Build here; must be empty or new (default: a temporary directory)."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="SVG", help="Also save what was shown as a picture.")
    ] = None,
) -> None:
    """Watch a fleet of real files balance itself: no set-up, under a minute, nothing left behind."""
    # By name, not by import: the demo stands above the command line in the layers, as a guest that it invites.
    scenario = import_module("rebalance_tasks.demo.scenario")
    order = scenario.Order(
        source=source, nodes=nodes, seed=seed, preset=preset, keep=keep, directory=directory, picture=picture
    )
    raise typer.Exit(scenario.run(order))


# -- looking -------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: rebalance nodes --adopt")
def nodes(
    adopt: Annotated[bool, typer.Option("--adopt", help="Write the node-id file to nodes that have none yet.")] = False,
    forget: Annotated[
        str | None, typer.Option(metavar="NODE", help="Forget all that sends readers to this node, which is leaving.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show every node: utilisation, state, health, and which workers serve it. Surveys the nodes themselves."""
    from rebalance_tasks.cli import node_tables, serving  # noqa: PLC0415

    client = session.open_client()
    if forget is not None:
        data = {"node_id": forget, "forgotten": client.forget_node(forget)}
        emit(data, as_json=as_json, render=lambda: f"{data['forgotten']} forwardings and locations led to {forget}")
        return
    with output.busy("looking at the nodes", quiet=as_json):
        adopted = client.adopt() if adopt else []
        reports = client.nodes()
        workers = client.workers()
    if adopt and not as_json:
        typer.echo(f"adopted: {', '.join(adopted)}" if adopted else "every node was adopted already")
    rows = [
        {
            **node_tables.node_row(report),
            **serving.served_row(report.node, workers),
            "adopted_now": report.node.node_id in adopted,
        }
        for report in reports
    ]
    found = [report.node for report in reports]
    emit(rows, as_json=as_json, render=lambda: serving.below(node_tables.nodes_table(reports), found, workers))


@app.command(epilog="Example: rebalance locate photos/2024/cat.jpg")
def locate(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The object's key.")],
    as_json: Json = False,
) -> None:
    """Tell on which node an object is right now."""
    found = session.open_client().locate(key)
    url = masked_url(found.url)
    data = {"object_key": key, "node_id": found.node_id, "url": url, "via": found.via, "hops": found.hops}
    emit(data, as_json=as_json, render=lambda: f"{found.node_id}  {url}  (via {found.via})")


app.command(epilog="Example: rebalance place photos/2024/cat.jpg --replicas 3")(placement.place)


@app.command(epilog="Example: rebalance jobs --status running")
def jobs(
    state: Annotated[RebalanceStatus | None, typer.Option("--status", help="Only jobs in this state.")] = None,
    as_json: Json = False,
) -> None:
    """List the fleet's jobs."""
    from rebalance_tasks.cli import tables  # noqa: PLC0415

    found = session.open_client().jobs(status=state)
    emit(found, as_json=as_json, render=lambda: tables.jobs_table(found))


@app.command(epilog="Example: rebalance status rebal-20240131-7f3a")
def status(job: Job = None, as_json: Json = False) -> None:
    """Show everything known of a job."""
    from rebalance_tasks.cli import tables  # noqa: PLC0415

    client = session.open_client()
    found = client.status(session.chosen_job(client, job))
    groups = client.failures(found.job_id)
    deadline = session.deadline_of(client, found)
    limits, fewer = ([], {}) if found.status.terminal else (client.node_throttles(), client.in_flight())
    data = {
        **output.jsonable(found),
        "failure_groups": output.jsonable(groups),
        "deadline_utc": output.jsonable(deadline),
        "node_throttles": [throttles.throttle_data(entry) for entry in limits],
        "in_flight": [{"source": source, "target": target, "reason": why} for (source, target), why in fewer.items()],
    }

    def view() -> RenderableType:
        return throttles.below(tables.job_page(found, groups, deadline=deadline), limits, fewer)

    emit(data, as_json=as_json, render=view)


@app.command(epilog="Example: rebalance watch")
def watch(job: Job = None, as_json: Json = False) -> None:
    """Follow a job to its end: bars, rate, failures, and the keys p, r, c (each asks first) and q. Elsewhere than on a terminal a line a change; with --json the job as it ended."""
    client = session.open_client()
    session.follow_to_end(session.chosen_job(client, job), as_json=as_json)


@app.command(epilog="Example: rebalance doctor")
def doctor(as_json: Json = False) -> None:
    """Look at Redis, workers, beat, nodes and settings, and say how to mend what is wrong; exit 1 if something does not work."""
    from rebalance_tasks.cli import doctor as ward  # noqa: PLC0415

    with output.busy("looking at Redis, workers and nodes", quiet=as_json):
        findings = session.open_client().doctor()
    emit(findings, as_json=as_json, render=lambda: ward.findings_table(findings))
    if any(finding.verdict == "fail" for finding in findings):
        raise typer.Exit(EXIT_FAILED)


app.command(epilog="Example: rebalance console --port 8580")(console.console)


# -- planning ------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: rebalance check --force")
def check(
    force: Annotated[
        bool, typer.Option("--force", help="Plan even when the imbalance is under the threshold.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Survey the fleet now and plan if it is unbalanced (what beat does on schedule)."""
    with output.busy("surveying the nodes and planning", quiet=as_json):
        result = session.open_client().check(force=force)
    plan = f"\nplan {result.plan_id}" if result.plan_id else ""
    emit(result, as_json=as_json, render=lambda: f"{result.verdict}: {result.reason}{plan}")


app.command(epilog="Example: rebalance plan --explain photos/2024/cat.jpg")(plan.plan)
app.command(epilog="Example: rebalance checks --limit 5")(checks.checks)


# -- acting --------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: rebalance start plan-7f3a --watch")
def start(
    plan_id: Annotated[
        str | None, typer.Argument(metavar="PLAN_ID", help="A saved plan; without it, one is made now.")
    ] = None,
    job_id: Annotated[
        str | None, typer.Option("--job-id", help="The job's id; starting it again changes nothing.")
    ] = None,
    follow: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    as_json: Json = False,
) -> None:
    """Carry out a plan in the background, by the Celery workers."""
    from rebalance_tasks.cli import tables  # noqa: PLC0415

    client = session.open_client()
    with output.busy("surveying the nodes and planning" if plan_id is None else "starting", quiet=as_json):
        started = client.start(plan_id or plan.planned_now(client), job_id=job_id)
    if follow:
        session.follow_to_end(started.job_id, as_json=as_json)
        return
    emit(started, as_json=as_json, render=lambda: tables.started_text(started))


@app.command(epilog="Example: rebalance pause")
def pause(job: Job = None, everything: All = False, node: Node = None, as_json: Json = False) -> None:
    """Hold a job: what is being copied stops within a quarter of a second. With --all: the fleet; with --node: one node."""
    client = session.open_client()
    session.refuse_mixture(job, everything=everything, node=node)
    if node is not None:
        told = f"node {node} is paused; `rebalance resume --node {node}` lifts it"
        _controlled(client.pause_node(node), as_json=as_json, fleet=told)
        return
    if everything:
        _controlled(client.pause_all(), as_json=as_json, fleet="the fleet is paused; `rebalance resume --all` lifts it")
        return
    _controlled(client.pause(session.chosen_job(client, job)), as_json=as_json)


@app.command(epilog="Example: rebalance resume")
def resume(job: Job = None, everything: All = False, node: Node = None, as_json: Json = False) -> None:
    """Let a paused job go on where it stopped. With --all: lift the pause of the fleet; with --node: that of one node."""
    client = session.open_client()
    session.refuse_mixture(job, everything=everything, node=node)
    if node is not None:
        _controlled(client.resume_node(node), as_json=as_json, fleet=f"node {node} is not paused any more")
        return
    if everything:
        _controlled(client.resume_all(), as_json=as_json, fleet="the fleet is not paused any more")
        return
    _controlled(client.resume(session.chosen_job(client, job)), as_json=as_json)


@app.command(epilog="Example: rebalance cancel rebal-20240131-7f3a")
def cancel(job: Job = None, as_json: Json = False) -> None:
    """Stop a job for good: moved objects stay where they are now, half-made copies are removed."""
    client = session.open_client()
    result = client.cancel(session.chosen_job(client, job))
    ended = result.status is None or result.status.terminal
    told = "" if ended else "it ends as cancelled when its workers have let go; `rebalance watch` shows it"
    _controlled(result, as_json=as_json, fleet=told)


def _controlled(result: ControlResult, *, as_json: bool, fleet: str = "") -> None:
    """Print what a control verb came to; a reason means that it did not do what was asked.

    Args:
        result: of the verb.
        as_json: print the result as it is.
        fleet: said first: what a verb for the whole fleet did, or what is still to come.
    """
    state = result.status.value if result.status is not None else "unknown"
    job = f"job {result.job_id} is {state}" if result.job_id else "no job is active"
    if as_json:
        output.print_json(result)
    elif not result.reason:
        typer.echo(f"{fleet}\n{job}" if fleet else job)
    if result.reason:
        told = f"job {result.job_id}: {result.reason} (it is {state})" if result.job_id else result.reason
        output.console(stderr=True).print(f"error: {told}", style="red", markup=False)
        raise typer.Exit(EXIT_FAILED)


# -- upkeep: commands with a file of their own ---------------------------------------------------------------------

app.command(name="retry-failed", epilog="Example: rebalance retry-failed rebal-20240131-7f3a --watch")(
    upkeep.retry_failed
)
app.command(epilog="Example: rebalance limit 6")(upkeep.limit)
app.command(epilog="Example: rebalance throttle 20MiB/s")(throttles.throttle)
app.command(epilog="Example: rebalance reindex")(upkeep.reindex)

# -- watching over a fleet: commands with files of their own --------------------------------------------------------------

app.command(epilog="Example: rebalance init --node disk1=/srv/disk1,zone=a --node disk2=/srv/disk2,zone=b")(init.init)
app.command(epilog="Example: rebalance events --follow")(events.events)
app.command(epilog="Example: rebalance metrics --port 9817")(metrics.metrics)

# -- trying before moving, and taking back: commands with files of their own --------------------------------------------

app.add_typer(
    simulate.group,
    name="simulate",
    epilog="Example: rebalance simulate --synthetic 12 --event '5 add node_id=new capacity_bytes=2GB'",
)
app.command(epilog="Example: rebalance drain disk3 --dry-run")(node_states.drain)
app.command(epilog="Example: rebalance activate disk3")(node_states.activate)
app.command(epilog="Example: rebalance maintenance disk3")(node_states.maintenance)
app.command(epilog="Example: rebalance undo rebal-20240131-7f3a --start")(undo.undo)
