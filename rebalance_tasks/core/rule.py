"""One rule of ``[[rules]]``, apart from the code that applies it (`rules`), so that settings need not load NumPy to know it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from rebalance_tasks.core.models import Frozen, StorageClass


class Rule(Frozen):
    """What objects with keys like a pattern need.

    Attributes:
        pattern: glob over whole keys; ``*`` also matches ``/``.
        regions: the only regions in which they may live; empty: anywhere.
        storage_class: what their node must offer.
        tags: what their node must carry.
        pinned: they are never moved.
        dataset: what they belong to, where colocation goes by datasets: its objects on one node hold each other there.
    """

    pattern: Annotated[str, Field(min_length=1, max_length=1024)]
    regions: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    storage_class: StorageClass | None = None
    tags: Mapping[str, str] = Field(default_factory=dict)
    pinned: bool = False
    dataset: Annotated[str, Field(max_length=256)] = ""
