"""One call of the HTTP API: who asks for what; and how an endpoint is described."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from rebalance_tasks.console.access import Role
from rebalance_tasks.core.errors import InvalidArgument, PermanentError
from rebalance_tasks.core.models import Frozen, Identifier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import BaseModel

    from rebalance_tasks.client import Rebalancer
    from rebalance_tasks.console.shelf import PlanShelf
    from rebalance_tasks.console.watcher import Watcher

#: More rows than a page shows; a program that wants all asks again.
MOST_ROWS: Final = 1_000
_IDENTIFIER: Final[TypeAdapter[str]] = TypeAdapter(Identifier)
Given = TypeVar("Given", bound=Frozen)


class Refused(PermanentError):
    """What was asked for cannot be done as things stand; the message says what stands in the way."""

    cause = "refused"


class Nothing(Frozen):
    """A query or body that takes nothing."""


class Page(Frozen):
    """Which rows of a list."""

    offset: NonNegativeInt = 0
    limit: NonNegativeInt = 100

    def cut(self, rows: Sequence[Any], shape: Callable[[Any], object]) -> dict[str, Any]:
        """Return the rows asked for, shaped, with the number of all."""
        chosen = rows[self.offset : self.offset + min(self.limit, MOST_ROWS)]
        return {"total": len(rows), "offset": self.offset, "items": [shape(row) for row in chosen]}


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler works with: everything in it has been validated.

    Attributes:
        name: the identifier in the path (a job, a plan, a node), empty where there is none.
        given: the endpoint's query or body model.
    """

    client: Rebalancer
    watcher: Watcher
    shelf: PlanShelf
    name: str
    given: Frozen

    def arguments(self, model: type[Given]) -> Given:
        """Return the arguments, as the type that the endpoint declares."""
        assert isinstance(self.given, model)  # noqa: S101  the endpoint's declaration, for the type checker
        return self.given


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint; its handler's docstring is its line in the reference.

    Attributes:
        role: who may call it.
        takes: model of the query (GET) or of the JSON body (POST).
    """

    method: str
    path: str
    role: Role
    handler: Callable[[Call], object]
    takes: type[Frozen] = Nothing

    @property
    def summary(self) -> str:
        """The first line of the handler's docstring."""
        return (self.handler.__doc__ or "").partition("\n")[0]


def read(path: str, handler: Callable[[Call], object], takes: type[Frozen] = Nothing) -> Endpoint:
    """Describe an endpoint that changes nothing."""
    return Endpoint("GET", path, Role.VIEWER, handler, takes)


def act(path: str, handler: Callable[[Call], object], takes: type[Frozen] = Nothing) -> Endpoint:
    """Describe an endpoint that acts."""
    return Endpoint("POST", path, Role.OPERATOR, handler, takes)


def validated(model: type[Frozen], data: Mapping[str, Any]) -> Frozen:
    """Read a query or a body. Raises: InvalidArgument, naming field and value."""
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        raise InvalidArgument(_told(exc, model)) from exc


def identifier(text: str) -> str:
    """Check an id of a path before it names a key in Redis or a node. Raises: InvalidArgument."""
    try:
        return _IDENTIFIER.validate_python(text)
    except ValidationError as exc:
        msg = f"id {text[:80]!a} refused: 1 to 128 letters, digits, '.', '_', ':' or '-', the first a letter or digit"
        raise InvalidArgument(msg) from exc


def _told(error: ValidationError, model: type[BaseModel]) -> str:
    allowed = ", ".join(model.model_fields) or "none"
    parts = [
        f"{'.'.join(map(str, problem['loc'])) or 'body'}={str(problem['input'])[:80]!a}: {problem['msg']}"
        for problem in error.errors(include_url=False)
    ]
    return f"{'; '.join(parts)} (arguments here: {allowed})"
