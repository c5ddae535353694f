"""An application with a catalogue of its own: docs/examples/sqlite_catalogue.py, installed as a package would be."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

EXAMPLES: Final = Path(__file__).parents[2] / "docs/examples"
#: Of ``[fleet]``.
HOSTED: Final = {"locator": "catalogue", "catalogue": "provider:acme"}


def install(directory: Path, monkeypatch: pytest.MonkeyPatch, *, entry: str = "sqlite_catalogue:open_catalogue") -> Any:
    """Install the example for this process and its children, with an empty catalogue; return its module."""
    site = directory / "site"
    info = site / "acme_catalogue-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-catalogue\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[rebalance_tasks.providers]\nacme = {entry}\n")
    paths = [str(site), str(EXAMPLES)]
    for path in reversed(paths):
        monkeypatch.syspath_prepend(path)
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*paths, *([before] if before else [])]))
    monkeypatch.setenv("ACME_CATALOGUE", str(directory / "catalogue.db"))
    importlib.invalidate_caches()
    sys.modules.pop("sqlite_catalogue", None)
    return importlib.import_module("sqlite_catalogue")


def catalogue() -> Any:
    """The catalogue as the host itself sees it."""
    return importlib.import_module("sqlite_catalogue").open_catalogue([])


def fill(roots: Mapping[str, Path]) -> None:
    """Tell the catalogue what is on the nodes."""
    from rebalance_tasks.core.catalogue import Flip
    from tests.support.strangers import keys_on

    made = catalogue()
    made.flip([Flip(key, None, node, 0) for node, root in roots.items() for key in keys_on(root)])
