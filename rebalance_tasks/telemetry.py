"""Logs: an event name and fields, task ids bound once, secrets masked; carried by the standard library's logging.

`get_logger` gives structlog loggers that render here and hand one finished line to the logger of the same name below
``rebalance_tasks``. A host application, or a Celery worker with its hijacked root logger, therefore keeps its own handlers
and format; nothing is configured globally and nothing happens at import time. `configure_logging` is for processes of
ours that have no handlers yet (command line, demo) or want JSON lines.

Example:
    >>> log = get_logger(__name__)
    >>> with bound_ids(job_id="rebal-1", group_id="g1"):
    ...     log.info("move.flipped", object_key="a/b")
"""

from __future__ import annotations

import json as json_module
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

import structlog
from structlog.contextvars import bound_contextvars, merge_contextvars

from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.core.masking import masked, masked_text

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping
    from contextlib import AbstractContextManager

    from structlog.stdlib import BoundLogger
    from structlog.typing import Processor

#: Every logger of ours is this one or below it.
ROOT: Final = "rebalance_tasks"

#: The attribute under which a record carries its fields to a formatter that wants them apart.
_FIELDS: Final = "rebalance_fields"
_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_TEXT_FORMAT: Final = "%(asctime)s %(levelname)-7s %(message)s"


def get_logger(name: str = ROOT) -> BoundLogger:
    """Return a logger; ``name`` is a module's ``__name__`` (other names are put below ``rebalance_tasks``)."""
    full = name if name == ROOT or name.startswith(f"{ROOT}.") else f"{ROOT}.{name}"
    return cast(
        "BoundLogger",
        structlog.wrap_logger(
            logging.getLogger(full),
            processors=_PROCESSORS,
            wrapper_class=structlog.stdlib.BoundLogger,
            context_class=dict,
            cache_logger_on_first_use=True,
        ),
    )


def bound_ids(**ids: str | int | None) -> AbstractContextManager[None]:
    """Bind ids (``task_id``, ``job_id``, ``group_id`` …) to every line logged inside the context; ``None`` is left out."""
    return bound_contextvars(**{name: value for name, value in ids.items() if value is not None})


def configure_logging(level: str = "INFO", json: bool | None = None, *, stream: TextIO | None = None) -> None:  # noqa: FBT001  reads well: ("INFO", json=True)
    """Set the level of our loggers and, where nobody else handles them, write them to stderr.

    Where the root logger has handlers (a Celery worker, a host application, a test runner), those stay as they are and get
    our lines; otherwise one handler of ours is attached to ``rebalance_tasks``. Calling it again replaces that handler.
    A worker calls it from Celery's ``after_setup_logger`` signal: earlier there is no root handler to find yet.

    Args:
        level: DEBUG, INFO, WARNING, ERROR or CRITICAL, in any case.
        json: one JSON object a line; ``None`` means "unless a terminal reads". Under foreign handlers see `use_json`.
        stream: where to write; given, our handler is attached in any case.

    Raises:
        ConfigurationError: unknown level.
    """
    if level.upper() not in _LEVELS:
        msg = f"log level {level!r} is unknown; allowed: {', '.join(_LEVELS)}"
        raise ConfigurationError(msg)
    logger = logging.getLogger(ROOT)
    logger.setLevel(level.upper())
    for handler in [known for known in logger.handlers if isinstance(known, _OurHandler)]:
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
    if stream is None and logging.getLogger().handlers:
        return
    handler = _OurHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter(json=not handler.stream.isatty() if json is None else json))
    logger.addHandler(handler)
    logger.propagate = False


def use_json(logger: logging.Logger) -> None:
    """Let a logger's handlers write JSON lines, foreign records included.

    Meant for Celery's ``after_setup_logger`` and ``after_setup_task_logger`` signals, which pass the logger to change.
    """
    for handler in logger.handlers:
        handler.setFormatter(LineFormatter(json=True))


class LineFormatter(logging.Formatter):
    """Formats our records and foreign ones alike: as text, or as one JSON object a line."""

    def __init__(self, *, json: bool) -> None:
        """Choose the form."""
        super().__init__(_TEXT_FORMAT)
        self._json = json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; secrets in URLs are masked in foreign records too."""
        if not self._json:
            return masked_text(super().format(record))
        fields = getattr(record, _FIELDS, None)
        if fields is None:
            fields = {"event": masked_text(record.getMessage())}
            if record.exc_info:
                fields["exception"] = masked_text(self.formatException(record.exc_info))
        head = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        return json_module.dumps({**head, **fields}, default=_shown, ensure_ascii=False)


class _OurHandler(logging.StreamHandler[TextIO]):
    """The one handler that `configure_logging` may replace."""


def _mask(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: masked(value, name=name) for name, value in event.items()}


def _hand_over(_logger: object, _method: str, event: Mapping[str, Any]) -> tuple[tuple[str], dict[str, Any]]:
    """Render the line, and keep its fields beside it for `LineFormatter`."""
    exception = event.get("exception")
    pairs = [f"{name}={_plain(value)}" for name, value in event.items() if name not in {"event", "exception"}]
    text = " ".join([_one_line(str(event.get("event", ""))), *pairs])
    if exception:
        text = f"{text}\n{exception}"
    return (text,), {"extra": {_FIELDS: dict(event)}}


def _plain(value: object) -> str:
    """Quote what could be mistaken: keys of objects may hold spaces, quotes and newlines."""
    text = value if isinstance(value, str) else _shown(value)
    simple = text and not any(char in text for char in " \"'=") and text.isprintable()
    return text if simple else json_module.dumps(text, ensure_ascii=False)


def _shown(value: object) -> str:
    """Text of an object that is not plain data: an exception may quote a URL."""
    return masked_text(str(value))


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()


_PROCESSORS: Final[list[Processor]] = [
    structlog.stdlib.filter_by_level,
    merge_contextvars,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.StackInfoRenderer(),
    structlog.processors.format_exc_info,
    _mask,
    _hand_over,
]
