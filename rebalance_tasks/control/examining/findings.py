"""What the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the thing, as ``redis`` or ``node disk1``.
        verdict: ``ok``; ``warn``: it works and is not as it should be; ``fail``: something does not work.
        detail: what was seen.
        next_step: what to do, empty when all is well.
    """

    name: str
    verdict: Verdict
    detail: str
    next_step: str = ""
