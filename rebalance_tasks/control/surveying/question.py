"""The second question of a survey: which candidates' keys lie at a place that keeps the hashes of its other keys apart?

merge ─▶ **KeysUnmet** ─▶ `survey_round.ask_again` ── messages ─▶ **Answers**: the host's file, else one more listing ─▶ merge, now with all answers

So Redis holds candidates and a bounded number of hashes, however many objects there are (ADR 36). Keeps: an object that lies on two nodes is never planned,
and a place that cannot answer leaves its node out whole.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from rebalance_tasks.control.surveying.memory import spill_folder
from rebalance_tasks.control.surveying.other_keys import HashFiles
from rebalance_tasks.core.keeping.sought import Sought, unpacked
from rebalance_tasks.core.placement.hashing import hash_keys
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.drivers.remembered import Remembered

log = get_logger(__name__)


class KeysUnmet(Exception):
    """Which candidates lie on two nodes cannot be told before some places were asked."""

    def __init__(self, sought: Sought, places: Sequence[str]) -> None:
        """Say what is to be asked, and where: nodes and parts of nodes."""
        super().__init__(f"{len(places)} places keep the hashes of their other keys apart")
        self.sought = sought
        self.places = places


class Answers:
    """Answers for one process, to the question that is asked now."""

    def __init__(self, context: FleetContext) -> None:
        """Read nothing yet."""
        self._surveys = context.surveys
        self._files = HashFiles(spill_folder(context.settings))

    @cached_property
    def _sought(self) -> Sought:
        return Sought(unpacked(self._surveys.sought()))

    def about(self, place: str, mark: str, listed: Callable[[], Remembered]) -> bytes:
        """Return the hashes of the keys that are looked for and lie at a place beside its own candidates, uint64.

        Args:
            place: a node, or a part of one.
            mark: of the file in which its other keys are (`Finding.others_apart`), on whichever host listed it.
            listed: lists the place once more, where the file is not here.

        Raises:
            NodeError: it had to be listed, and could not.
        """
        met = self._files.among(place, mark, self._sought)
        if met is None:
            log.info("survey.listed_once_more", node=place)
            hashes = hash_keys(listed().keys)
            met = np.setdiff1d(hashes[self._sought.among(hashes)], self._own(place))
        return met.tobytes()

    def _own(self, place: str) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """Hashes of the keys that the place has handed in as candidates."""
        [packed] = self._surveys.rows([place])
        if not packed:
            return np.empty(0, np.uint64)
        return hash_keys(pa.ipc.open_stream(packed).read_all().column("object_key"))
