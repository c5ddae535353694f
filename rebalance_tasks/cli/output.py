"""Printing: tables for people, one JSON document for programs, errors as one line on stderr.

With ``--json`` stdout carries exactly one JSON document, whatever happens, errors included. Colour only on a terminal.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from rebalance_tasks.core.masking import masked_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console, RenderableType

#: A pipe has no width; keys and reasons should not be cut for the sake of one.
PIPE_WIDTH: Final = 200
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
#: What a shell reports for a program ended by Ctrl-C (128 + SIGINT).
EXIT_INTERRUPTED: Final = 130


def console(*, stderr: bool = False) -> Console:
    """Return a console that knows whether it writes to a terminal."""
    from rich.console import Console  # noqa: PLC0415

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=not stream.isatty())


def emit(data: object, *, as_json: bool, render: Callable[[], RenderableType]) -> None:
    """Print ``data`` as one JSON document, or what ``render`` makes of it."""
    if as_json:
        print_json(data)
    else:
        console().print(render())


@contextmanager
def busy(what: str, *, quiet: bool) -> Iterator[None]:
    """Show on a terminal's stderr that something long goes on, and what."""
    err = console(stderr=True)
    if quiet or not err.is_terminal:
        yield
        return
    with err.status(what):
        yield


def print_json(data: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(jsonable(data), indent=2, ensure_ascii=False) + "\n")


def jsonable(data: object) -> Any:  # noqa: ANN401, PLR0911  JSON is any of six types, and each has its line
    """Turn models, dataclasses and what they hold into plain JSON data (money stays exact, as a string)."""
    match data:
        case None | bool() | int() | float():
            return data
        case str():
            # Not the subclass (a located key carries attributes); unpaired surrogates of odd file names stay printable.
            return str(data).encode("utf-8", "backslashreplace").decode("utf-8")
        case Mapping():
            return {str(key): jsonable(value) for key, value in data.items()}
        case list() | tuple() | set() | frozenset():
            return [jsonable(item) for item in data]
        case BaseModel():
            return data.model_dump(mode="json")
        case _ if dataclasses.is_dataclass(data):
            return {field.name: jsonable(getattr(data, field.name)) for field in dataclasses.fields(data)}
        case datetime():
            return data.isoformat()
        case _:
            return str(data)


def report_error(error: Exception, *, as_json: bool) -> int:
    """Print why a command failed, and return its exit code.

    A `RebalanceError` knows what to say. Anything else is either Redis being away, which is said plainly, or a defect:
    named in one line, with the traceback behind ``REBALANCE_DEBUG=1``.
    """
    from rebalance_tasks.core.errors import ConfigurationError  # noqa: PLC0415

    message, cause = error_story(error)
    if os.environ.get("REBALANCE_DEBUG"):
        traceback.print_exception(error)
    if as_json:
        print_json({"error": message, "cause": cause})
    console(stderr=True).print("error: " + message, style="red", markup=False)
    return EXIT_USAGE if isinstance(error, ConfigurationError) else EXIT_FAILED


def error_story(error: Exception) -> tuple[str, str]:
    """Return what to say of an error, without secrets, and its stable word (``redis_unreachable``, ``defect``)."""
    from rebalance_tasks.core.errors import RebalanceError  # noqa: PLC0415

    message, cause = str(error) or type(error).__name__, "error"
    if isinstance(error, RebalanceError):
        cause = error.cause
    elif type(error).__module__.partition(".")[0] in {"redis", "kombu"} or isinstance(error, ConnectionError):
        cause = "redis_unreachable"
        message = (
            f"Redis does not answer ({message}); is it running, and is redis_url in [fleet] of rebalance.toml right?"
        )
    else:
        cause = "defect"
        message = f"{type(error).__name__}: {message} (a defect of this program; REBALANCE_DEBUG=1 shows where)"
    return masked_text(message), cause
