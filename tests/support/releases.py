"""An earlier release of this project, taken from its own history, so that workers of two releases can be run side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

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
    """This process' environment, except that ``rebalance_tasks`` is that tree's, whatever is installed; it is asked, to be sure.

    Nor is its coverage counted: it would be that of files which are gone when the test is over.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    env |= {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    told = run_in(env, "import rebalance_tasks; print(rebalance_tasks.__file__)")
    assert Path(told.strip()).is_relative_to(tree), told
    return env


def run_in(env: Mapping[str, str], code: str) -> str:
    """Run a piece of Python in an environment and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], env=dict(env), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
