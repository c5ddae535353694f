"""Which object at a key is the copy that a dead worker left there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.migration.ways import as_published

STAGED = Fingerprint(10, mtime_ns=5, etag="a-2")
ANOTHER = Fingerprint(10, mtime_ns=5, etag="b-2")


def target(at_key: Fingerprint | None, **says: Any) -> Any:
    return SimpleNamespace(stat=lambda _: at_key, **says)


@pytest.mark.parametrize("says", [{}, {"uploads_at_keys": True}, {"keeps_versions": False}])
def test_the_very_version_that_was_staged_is_the_copy(says: dict[str, bool]) -> None:
    assert as_published(target(STAGED, **says), "k", STAGED) == STAGED
    assert as_published(target(None, **says), "k", STAGED) is None


def test_another_version_of_the_same_size_and_time_is_the_copy_only_where_copies_change_their_version() -> None:
    assert as_published(target(ANOTHER), "k", STAGED) == ANOTHER
    assert as_published(target(ANOTHER, uploads_at_keys=True), "k", STAGED) is None
