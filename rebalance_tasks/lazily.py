"""Modules that are loaded when something of them is first used."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


class _LaterModule(ModuleType):
    """Stands for a module until then."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever the module holds
        return getattr(import_module(self.__name__), name)


class _LaterPackage(ModuleType):
    """Is a package of somebody else whose own code has not run; its modules can be imported by name all the same."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever the package holds
        self.__class__ = ModuleType  # type: ignore[assignment]  # an ordinary module from here on
        spec = self.__spec__
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module(self)
        return getattr(self, name)


def module(name: str) -> ModuleType:
    """Return a stand-in for a module, by its full name; its first use imports it."""
    return _LaterModule(name)


def package(parent: str, name: str) -> None:
    """Have the package ``parent.name``, which its parent imports for everybody, run when something of it is first used.

    For a process of ours that is short of time; in somebody else's, modules are theirs to load. `importlib.util.LazyLoader`
    does not serve: it runs a package as soon as a module in it is imported. Does nothing once the package is there.

    Args:
        parent: a package that has not been imported yet.
        name: a package in it.
    """
    full, above = f"{parent}.{name}", find_spec(parent)
    spec = PathFinder.find_spec(full, above.submodule_search_locations) if above is not None else None
    if spec is None or full in sys.modules:
        return
    made = module_from_spec(spec)
    made.__class__ = _LaterPackage
    sys.modules[full] = made
