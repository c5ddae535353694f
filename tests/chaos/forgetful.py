"""The storm of a forgetful Redis: lost tails and cancels above all, so that jobs end of whose moves Redis knows only a part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.chaos.schedule import WEIGHTS
from tests.chaos.storm import Storm

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The usual faults; what makes Redis forget, and what ends a job meanwhile, several times as often.
FORGETFUL_WEIGHTS: Final = {**WEIGHTS, "crash_and_lose": 16, "power_cut": 6, "cancel": 8, "kill_child": 15}


@dataclass
class ForgetfulStorm(Storm):
    """A round in which Redis loses its last seconds again and again."""

    weights: Mapping[str, float] = field(default_factory=lambda: FORGETFUL_WEIGHTS)
