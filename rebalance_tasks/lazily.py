"""Modules that are loaded when something of them is first used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any


class _LaterModule(ModuleType):
    """Stands for a module until then."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever the module holds
        return getattr(import_module(self.__name__), name)


def module(name: str) -> ModuleType:
    """Return a stand-in for a module, by its full name; its first use imports it."""
    return _LaterModule(name)
