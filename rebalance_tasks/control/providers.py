"""What installed packages offer to a fleet under the entry point group ``rebalance_tasks.providers``.

A name comes from the process' own configuration only (invariant 13).
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, Final

from rebalance_tasks.core.errors import ConfigurationError

#: Entry point group.
PROVIDERS: Final = "rebalance_tasks.providers"
PROVIDER_PREFIX: Final = "provider:"


def load_provider(source: str, *, setting: str) -> Any:  # noqa: ANN401  whatever a package offers
    """Return what an entry point names.

    Args:
        source: ``provider:`` and a name.
        setting: what asks for it, as ``[fleet] inventory``, for the message.

    Raises:
        ConfigurationError: no such provider is installed, or it cannot be loaded.
    """
    name = source.removeprefix(PROVIDER_PREFIX)
    found = {entry.name: entry for entry in entry_points(group=PROVIDERS)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        msg = f"{setting}: provider {name!r} is not installed; known are {known} (entry points {PROVIDERS!r})"
        raise ConfigurationError(msg)
    try:
        return found[name].load()
    except Exception as exc:
        msg = f"{setting}: provider {name!r} failed: {type(exc).__name__}: {exc}"
        raise ConfigurationError(msg) from exc
