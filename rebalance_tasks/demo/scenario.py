"""The story of the demo, from an empty directory to an exit code.

Build a fleet of real files ▸ start a server, a worker and beat ▸ beat's check finds the fleet unbalanced and starts a job ▸
pause in the middle and show that nothing moves ▸ resume ▸ end the processes ▸ read every byte and compare.

Whatever happens (a failure, Ctrl-C, a closed terminal) the same clean-up runs: an active job is cancelled so that no copy
is left half-made, every process is ended, and the directory is removed unless it is to be kept.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from rebalance_tasks.cli.output import EXIT_INTERRUPTED, console, report_error
from rebalance_tasks.cli.tables import percent, size
from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.demo import corpus as corpora
from rebalance_tasks.demo import inspect
from rebalance_tasks.demo.crew import WORKER_CONCURRENCY, Crew
from rebalance_tasks.demo.display import LiveDisplay, PlainDisplay, picture, save_picture
from rebalance_tasks.demo.signals import Interrupted, Signals
from rebalance_tasks.demo.summary import Outcome, summary_lines, tour_lines
from rebalance_tasks.demo.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from rich.console import Console

    from rebalance_tasks.core.models import RebalanceJob
    from rebalance_tasks.demo.corpus import Corpus, DemoNode
    from rebalance_tasks.demo.display import Display

#: beat's check comes this often, instead of the preset's minutes.
CHECK_INTERVAL_S: Final = 2
#: Freed originals stay this long; an operator would leave the default of 15 minutes.
GRACE_S: Final = 2
#: Moving takes at least about this long, so that there is something to see: the throttle is lowered to it if need be.
WATCHABLE_S: Final = 5.0
#: No further round is begun after this, so that the demo ends within a minute.
LAST_ROUND_S: Final = 35.0
#: When no check has decided anything for this long, there is no next round.
NEXT_CHECK_S: Final = CHECK_INTERVAL_S + 3.0


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for on the command line."""

    source: Path | None = None
    nodes: int = 6
    seed: int = 1
    preset: str = "default"
    keep: bool = False
    directory: Path | None = None
    picture: Path | None = None


def run(order: Order) -> int:
    """Play the demo and return the exit code: 0, 1 with the reason on stderr, or 128 + signal."""
    with Signals() as signals:
        try:
            with _workplace(order, signals) as directory, Demo(order, directory, console(), signals) as demo:
                demo.play()
        except (Interrupted, KeyboardInterrupt) as exc:
            console(stderr=True).print("interrupted: every process has ended, no object is half-written")
            return exc.exit_code if isinstance(exc, Interrupted) else EXIT_INTERRUPTED
        except Exception as exc:  # noqa: BLE001  whatever it is, it is why the demo failed
            return report_error(exc, as_json=False)
    return 0


@contextlib.contextmanager
def _workplace(order: Order, signals: Signals) -> Iterator[Path]:
    """Yield an empty directory; remove it in the end, unless it is to be kept or shows why the demo failed."""
    ours = order.directory is None or not order.directory.exists()
    directory = order.directory.absolute() if order.directory is not None else None
    if directory is None:
        directory = Path(tempfile.mkdtemp(prefix="rebalance-demo-"))
    elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        msg = f"--dir {directory}: not an empty directory; the demo builds only where nothing is"
        raise InvalidArgument(msg)
    directory.mkdir(parents=True, exist_ok=True)
    keep = order.keep
    try:
        yield directory
    except Exception:
        keep = any(directory.iterdir())
        raise
    finally:
        signals.shield()
        if keep:
            console(stderr=True).print(f"kept: {directory}", markup=False)
        else:
            for entry in directory.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            if ours:
                directory.rmdir()


class Demo:
    """One run of the demo; a context manager that ends its processes."""

    def __init__(self, order: Order, directory: Path, out: Console, signals: Signals) -> None:
        """Prepare; nothing is built or started yet."""
        self._order = order
        self._directory = directory
        self._out = out
        self._signals = signals
        self._display: Display = LiveDisplay(out) if out.is_terminal else PlainDisplay(out)
        self._crew = Crew(directory, signals)
        self._began = time.monotonic()
        self._throttle = "throttled as the preset says"

    def play(self) -> None:
        """Tell the story to its end. Raises: RebalanceError when something was not as promised."""
        corpus = self._build()
        watcher = Watcher(corpus, self._crew, self._display, self._signals)
        self._display.event(
            f"spread between the fullest and the emptiest node: {percent(inspect.spread(watcher.start))}"
        )
        watcher.show("starting")
        self._crew.start_beat()
        self._display.event("server, worker and beat are up; beat will trigger the check")
        jobs = self._rounds(watcher)
        watcher.await_purge()
        watcher.show("done", jobs[-1])
        self._display.event("stopping beat, worker and server")
        self._crew.close(cancel=False)
        self._display.event("reading every byte back")
        verification = inspect.verify(corpus.nodes, corpus.digests)
        self._display.close()
        verification.require_success()
        took_s = time.monotonic() - self._began
        self._conclude(
            Outcome(corpus, watcher.start, jobs, verification, watcher.pause_note, self._throttle, took_s), watcher
        )

    def _build(self) -> Corpus:
        """Copy the files onto the nodes, while server and worker come up."""
        order, directory = self._order, self._directory
        self._display.event(f"collecting files from {order.source or 'the Python installation'}")
        files = corpora.collect(order.source, seed=order.seed)
        if len(files) < corpora.MIN_OBJECTS:
            self._display.event(
                f"only {len(files)} files there (a demo likes {corpora.MIN_OBJECTS}); taking what there is"
            )
        corpora.require_room(directory, files)
        total = sum(file.size_bytes for file in files)
        planned = corpora.design_nodes(directory, count=order.nodes, total_bytes=total, seed=order.seed)
        config = directory / "rebalance.toml"
        nodes = [node for node, _ in planned]
        corpora.write_config(config, nodes, redis_url=self._crew.start_server(), options=self._options(planned))
        self._crew.start_worker(config)
        self._display.event(f"copying {len(files)} files ({size(total)}) onto {order.nodes} nodes in {directory}")
        return corpora.build(directory, files, planned, seed=order.seed)

    def _options(self, planned: Sequence[tuple[DemoNode, int]]) -> dict[str, str | float]:
        """Return the preset, with the few changes that make it watchable within a minute."""
        preset: RebalancerOptions = getattr(RebalancerOptions, self._order.preset)()
        mean = sum(fill for _, fill in planned) / sum(node.capacity_bytes for node, _ in planned)
        surplus = sum(max(0.0, fill - mean * node.capacity_bytes) for node, fill in planned)
        at_once = min(preset.max_concurrent_migrations, WORKER_CONCURRENCY)
        watchable = max(1, int(surplus / WATCHABLE_S / at_once))
        options: dict[str, str | float] = {
            "preset": self._order.preset,
            "check_interval": f"{CHECK_INTERVAL_S}s",
            "min_object_age": "0s",
            "grace": f"{GRACE_S}s",
        }
        if preset.throttle_bytes_per_sec is None or watchable < preset.throttle_bytes_per_sec:
            options["throttle_bytes_per_sec"] = watchable
            self._throttle = f"throttled to {size(watchable)}/s per group, so that there is something to see"
            self._display.event(self._throttle)
        return options

    def _rounds(self, watcher: Watcher) -> list[RebalanceJob]:
        """Follow the first job, and further ones while checks find more to do and time allows."""
        jobs = [watcher.follow(watcher.await_job(set()), with_pause=True)]
        while time.monotonic() - self._began < LAST_ROUND_S:
            following = watcher.await_next_job({job.job_id for job in jobs}, patience_s=NEXT_CHECK_S)
            if following is None:
                break
            jobs.append(watcher.follow(following, with_pause=False))
        return jobs

    def _conclude(self, outcome: Outcome, watcher: Watcher) -> None:
        """Print what was achieved, and save the picture if one was asked for."""
        lines = summary_lines(outcome)
        tour = tour_lines(self._directory) if self._order.keep else []
        for line in lines + tour:
            self._out.print(line, markup=False, soft_wrap=True)
        if self._order.picture is not None:
            late = watcher.frames[len(watcher.frames) * 2 // 3] if watcher.frames else None
            save_picture(self._order.picture, [picture(late, []), "", *lines])
            self._out.print(f"picture   {self._order.picture}", markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything; what was being copied is undone or finished, never left half-made."""
        self._signals.shield()
        self._display.close()
        self._crew.close(cancel=error is not None)
        inspect.remove_staged((self._directory / "nodes").glob("*"))
