"""A worker imports what its nodes need before it forks, so that no child does so while a job waits."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.fleets import NodeSpec, write_fleet

if TYPE_CHECKING:
    from pathlib import Path

CODE = """
import sys
from celery.signals import worker_init
import rebalance_tasks.tasks
from rebalance_tasks.celery import app

class Worker:
    pass

Worker.app = app
assert "asyncssh" not in sys.modules
worker_init.send(sender=Worker)
print("asyncssh" in sys.modules)
"""


@pytest.mark.parametrize(
    ("settings", "imported"),
    [
        ({"url": "sftp://user@far/srv"}, True),
        ({"queue": "h2", "remote_url": "sftp://user@far/srv"}, True),
        ({}, False),
    ],
    ids=["sftp", "remote url", "disks only"],
)
def test_only_what_the_nodes_need_is_imported_when_a_worker_begins(
    tmp_path: Path, settings: dict[str, Any], imported: bool
) -> None:
    nodes = {"a": NodeSpec(), "b": NodeSpec(settings=settings)}
    made = write_fleet(tmp_path, redis_url="redis://127.0.0.1:1/0", nodes=nodes)
    environment = {**os.environ, "REBALANCE_CONFIG": str(made.config)}
    done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == str(imported)
