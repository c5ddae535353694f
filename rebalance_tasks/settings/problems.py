"""What is wrong with a setting, said so that its reader can put it right.

Every problem names where the value came from (the file or the environment variable), the field's path, the value (masked
where it may be secret), what is allowed, and a hint. All problems are told at once, in one `ConfigurationError`.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeAlias, Union, get_args, get_origin
from zoneinfo import available_timezones

import humanize
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.core.masking import MASK, is_secret_name, masked_text, masked_url

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

#: Where a value stands in the document: ``("nodes", 0, "url")``.
Location: TypeAlias = tuple[str | int, ...]

#: A longer value would bury the message.
_SHOWN_CHARACTERS: Final = 80
_RANGE_ERRORS: Final = frozenset(
    {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}
)
#: Follows from another error, which is told.
_CONSEQUENCES: Final = frozenset({"default_factory_not_called"})


@dataclass(frozen=True, slots=True)
class Problem:
    """One wrong setting."""

    #: the file, or ``environment variable REBALANCE_…``.
    source: str
    location: Location
    #: what is wrong and what to do; never holds a secret.
    text: str
    #: the value as it may be shown; empty where showing it does not help.
    shown: str = ""
    #: which of several alike is meant (``node 'disk1'``).
    about: str = ""

    def __str__(self) -> str:
        """Source, path, value and text on one line."""
        path = dotted(self.location)
        about = f" ({self.about})" if self.about else ""
        told = self.shown[:1] in {"'", "["} and self.shown in self.text
        value = f" = {self.shown}" if self.shown and not told else ""
        return f"{self.source}: {path}{about}{value}: {self.text}" if path else f"{self.source}: {self.text}"


def raise_problems(problems: Sequence[Problem]) -> NoReturn:
    """Raise one `ConfigurationError` that lists all problems."""
    if len(problems) == 1:
        raise ConfigurationError(str(problems[0]))
    lines = "".join(f"\n  - {problem}" for problem in problems)
    msg = f"{len(problems)} settings are wrong:{lines}"
    raise ConfigurationError(msg)


def problems_of(
    error: ValidationError,
    *,
    model: type[BaseModel],
    document: Mapping[str, Any],
    source_of: Callable[[Location], str],
) -> list[Problem]:
    """Translate pydantic's findings about a document into problems."""
    return [
        _problem(found, model=model, document=document, source=source_of(found["loc"]))
        for found in error.errors(include_url=False)
        if found["type"] not in _CONSEQUENCES
    ]


def dotted(location: Location) -> str:
    """Write a location as TOML people do: ``nodes[0].url``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known word most like this one, if any is at least ``cutoff`` alike."""
    by_folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=cutoff)
    return by_folded[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'?"`` for the nearest known word, or nothing."""
    meant = nearest(word, known)
    return f"did you mean {meant!r}?" if meant else ""


def shown(value: object, location: Location) -> str:
    """Return a value as an error message may show it: short, masked where it may be secret, tables not at all."""
    if any(isinstance(part, str) and is_secret_name(part) for part in location):
        return MASK
    match value:
        case str():
            text = masked_url(value) if "@" in value or "?" in value else value
            return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}...")
        case Mapping() | BaseModel() | [Mapping() | BaseModel(), *_]:
            return ""
        case list() | tuple() if not all(isinstance(item, int | float) for item in value) or len(value) > 4:  # noqa: PLR2004
            return f"a list of {len(value)}"
        case bool():
            return str(value).lower()
        case _:
            text = repr(value)
            return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def allowed_range(field: FieldInfo) -> str:
    """Say which values a numeric field takes (``"from 0 to 1"``); empty for a field without limits."""
    limits: dict[str, Any] = {}
    for limit in _limits(field):
        for kind in ("ge", "gt", "le", "lt"):
            bound = getattr(limit, kind, None)
            if bound is not None:
                limits[kind] = max(limits.get(kind, bound), bound) if kind == "ge" else bound
    if "gt" in limits and int in _types(field.annotation):
        limits["ge"] = limits.pop("gt") + 1
    if limits.keys() == {"ge", "le"}:
        return f"from {_bound(limits['ge'])} to {_bound(limits['le'])}"
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return ", ".join(f"{word} {_bound(limits[kind])}" for kind, word in words.items() if kind in limits)


def _problem(found: ErrorDetails, *, model: type[BaseModel], document: Mapping[str, Any], source: str) -> Problem:
    location: Location = found["loc"]
    name = str(location[-1]) if location else ""
    field, siblings = _look_up(model, location)
    value: object = found["input"]
    about = _about(document, location)
    match found["type"]:
        case "extra_forbidden":
            hint = did_you_mean(name, siblings) or _home_of(name, model) or f"known keys: {', '.join(siblings)}"
            return Problem(source, location, f"unknown key; {hint}", about=about)
        case "missing":
            return Problem(source, location, "is missing and has no default", about=about)
        case kind:
            allowed = allowed_range(field) if field else ""
            text = found["msg"].removeprefix("Value error, ").removeprefix("Input ")
            if kind in _RANGE_ERRORS and allowed:
                text = "out of range"
            if allowed:
                text += f"; allowed: {allowed}"
            if isinstance(value, str) and (hint := did_you_mean(value, _words(name, found))):
                text += f"; {hint}"
            said = shown(value, location)
            return Problem(source, location, "has the wrong type" if said == MASK else masked_text(text), said, about)


def _words(name: str, found: ErrorDetails) -> Iterable[str]:
    """The words a text field takes, where they are few or findable."""
    if name == "quiet_hours_timezone":
        return available_timezones()
    if found["type"] in {"literal_error", "enum"}:
        return str(found.get("ctx", {}).get("expected", "")).replace("'", "").replace(" or ", ", ").split(", ")
    return ()


def _about(document: Mapping[str, Any], location: Location) -> str:
    match location:
        case ("nodes", int(index), *_):
            try:
                node_id = document["nodes"][index]["node_id"]
            except (KeyError, IndexError, TypeError):
                return ""
            return f"node {node_id!r}" if isinstance(node_id, str) and len(node_id) <= _SHOWN_CHARACTERS else ""
        case _:
            return ""


def _home_of(name: str, model: type[BaseModel]) -> str:
    """Say under which table a misplaced key belongs."""
    for table, field in model.model_fields.items():
        inner = next(_models(field.annotation), None)
        if inner is not None and name in inner.model_fields:
            return f"it belongs under {f'[[{table}]]' if get_origin(field.annotation) is tuple else f'[{table}]'}"
    return ""


def _look_up(model: type[BaseModel], location: Location) -> tuple[FieldInfo | None, list[str]]:
    """Find the field at a location, and the names of it and its siblings."""
    field: FieldInfo | None = None
    current: type[BaseModel] | None = model
    siblings: list[str] = []
    for part in location:
        if isinstance(part, int):
            continue
        if current is None:
            return None, []
        by_key = {inner.alias or name: inner for name, inner in current.model_fields.items()}
        siblings = list(by_key)
        field = by_key.get(part)
        current = next(_models(field.annotation), None) if field else None
    return field, siblings


def _models(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401  any annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _limits(field: FieldInfo) -> Iterator[object]:
    yield from field.metadata
    yield from _nested_limits(field.annotation)


def _nested_limits(annotation: Any) -> Iterator[object]:  # noqa: ANN401  any annotation
    """Limits inside ``X | None`` and tuples, where pydantic leaves them nested."""
    if get_origin(annotation) is Annotated:
        for extra in annotation.__metadata__:
            yield from extra.metadata if isinstance(extra, FieldInfo) else (extra,)
        yield from _nested_limits(annotation.__origin__)
    elif get_origin(annotation) in {Union, types.UnionType, tuple}:
        for inner in get_args(annotation):
            yield from _nested_limits(inner)


def _types(annotation: Any) -> set[Any]:  # noqa: ANN401  any annotation
    return {annotation, *(found for inner in get_args(annotation) for found in _types(inner))} if annotation else set()


def _bound(bound: object) -> str:
    if isinstance(bound, timedelta):
        return humanize.precisedelta(bound)
    return f"{bound:g}" if isinstance(bound, float) else str(bound)
