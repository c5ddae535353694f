"""What a round of chaos did and found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rebalance_tasks.core.models import RebalanceJob


@dataclass
class Result:
    """What a round did and found; ``struck`` counts the steps right after which a process died."""

    seed: int
    kills: Counter[str]
    struck: Counter[str]
    acts: Counter[str]
    jobs: list[RebalanceJob]
    reads: int
    violations: list[str]

    @property
    def killed(self) -> int:
        return sum(self.kills.values())

    def line(self) -> str:
        """One line for a person."""
        moved = Counter[str]()
        causes = Counter[str]()
        for job in self.jobs:
            moved.update(completed=job.completed_moves, failed=job.failed_moves, skipped=job.skipped_moves)
            causes.update(job.failures)
        return (
            f"CHAOS_SEED={self.seed}: {self.killed} kills {dict(self.kills)}, {len(self.jobs)} jobs {dict(moved)}, "
            f"causes {dict(causes)}, {self.reads} reads, {len(self.violations)} violations"
        )
