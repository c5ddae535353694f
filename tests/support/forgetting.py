"""Redis that forgets its last seconds, without a server of its own: everything that the fleet keeps is put back as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control import lifecycle
from tests.support.hooks import WorkerDiedError, die_at

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rebalance_tasks.core.models import RebalanceMove
    from tests.support.engine import Engine


def remember(engine: Engine) -> dict[bytes, bytes]:
    """All that Redis holds of the fleet."""
    redis = engine.context.connection.client
    return {key: redis.dump(key) or b"" for key in redis.scan_iter("rebalance:*")}


def forget(engine: Engine, before: dict[bytes, bytes]) -> None:
    """Let Redis hold what it held before, and nothing else."""
    redis = engine.context.connection.client
    redis.flushall()
    for key, value in before.items():
        redis.restore(key, 0, value)


def forgotten_job(engine: Engine, moves: Iterable[RebalanceMove], step: str, job_id: str = "j1") -> None:
    """Start a job that Redis forgets from a step on, and that is cancelled then."""
    engine.start(moves, job_id=job_id)
    forget_from(engine, step, job_id)


def forget_from(engine: Engine, step: str, job_id: str = "j1") -> None:
    """Die at a step of a job's first batch, let Redis forget the batch, and cancel what is left."""
    before = remember(engine)
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, step)
        with pytest.raises(WorkerDiedError):
            engine.slice(job_id=job_id)
    forget(engine, before)
    lifecycle.cancel(engine.context, job_id, requested_by="test")
    assert engine.finish(job_id).completed_moves == 0
