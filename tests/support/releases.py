"""An earlier release of this project, taken from its own history, so that workers of two releases can be run side by side."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from rebalance_tasks.embedded import die_with_parent
from tests.support.uncounted import environment

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path(__file__).resolve().parents[2]
#: What the last release was; at each release the commit of that release takes its place.
BEFORE: Final = "26caeab"


def unpacked(commit: str, folder: Path) -> Path:
    """Put the package as it was at a commit into a folder; skips where the clone has no such history."""
    packed = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "--format=tar", commit, "rebalance_tasks"], capture_output=True, check=False
    )
    if packed.returncode != 0:
        pytest.skip(
            f"commit {commit} is not in this clone (a shallow one, or none at all): {packed.stderr.decode()[:200]}"
        )
    folder.mkdir(parents=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder


def environment_of(tree: Path) -> dict[str, str]:
    """This process' environment, except that ``rebalance_tasks`` is that tree's, whatever is installed.

    Nor is its coverage counted: it would be that of files which are gone when the test is over.
    """
    return {**environment(), "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}


class Client:
    """A client of the fleet in a process of its own: ``r`` is a `Rebalancer` of the release that the environment leads to."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            die_with_parent([sys.executable, "-c", _LISTEN], sig=signal.SIGKILL),
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, expression: str) -> str:
        """Return what an expression comes to, as text."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(expression, file=self._process.stdin, flush=True)
        told = self._process.stdout.readline().rstrip("\n")
        assert told, f"{expression}: see the client's traceback in the test's output"
        return told

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


_LISTEN: Final = """
import sys
import rebalance_tasks
from rebalance_tasks import Rebalancer
from rebalance_tasks.control.sweep import run_sweep
r = Rebalancer()
for line in sys.stdin:
    print(eval(line), flush=True)
"""
