"""Processes whose coverage nobody counts: what is killed outright leaves none behind, and a crowd runs what other tests have run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def environment() -> dict[str, str]:
    """This process' environment without what has a child's coverage counted, which would only slow it down."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COV")}


def uncounted() -> AbstractContextManager[object]:
    """For children that take their environment from this process, as a fork server does: what starts within is not counted."""
    return mock.patch.dict(os.environ, environment(), clear=True)
