"""Acts of the kill matrix in a fleet whose catalogue is its host's: it does not answer, or a writer holds what it commits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rebalance_tasks.control import catalogue as catalogues
from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.catalogue import Catalogue
from rebalance_tasks.core.errors import CatalogueUnreachable
from rebalance_tasks.store.claims import ClaimStore
from tests.support.killing import carry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rebalance_tasks.core.catalogue import Flip
    from tests.support.engine import Engine
    from tests.support.killing import Roots

#: For whom a claim is taken that nobody gives back.
SOMEBODY = "write:somebody"


def _around_flip(around: Callable[[Callable[[], list[str | None]], Sequence[Flip]], list[str | None]]) -> None:
    original = Catalogue.flip

    def flip(self: Catalogue, flips: Sequence[Flip]) -> list[str | None]:
        return around(lambda: original(self, flips), flips)

    Catalogue.flip = flip  # type: ignore[method-assign]


def lose_answers() -> None:
    """The catalogue does what it is asked, and its answer never comes."""

    def around(flip: Callable[[], list[str | None]], flips: Sequence[Flip]) -> list[str | None]:
        flip()
        raise CatalogueUnreachable(catalogues.SETTING, "the answer was lost")

    _around_flip(around)


def carry_and_lose_the_answer(engine: Engine, roots: Roots) -> None:
    """The catalogue commits, its answers are lost from then on, and an operator cancels."""
    lose_answers()
    engine.hurry()
    lifecycle.wake(engine.context, "j1")
    engine.work()
    assert engine.job().paused_reasons == (catalogues.AWAY,)
    lifecycle.cancel(engine.context, "j1", requested_by="test")
    engine.finish()


def cancel(engine: Engine, roots: Roots) -> None:
    """An operator cancels, and what is to be finished is finished."""
    lifecycle.cancel(engine.context, "j1", requested_by="test")
    carry(engine, roots)


def carry_while_a_writer_claims(engine: Engine, roots: Roots) -> None:
    """A writer has claimed the first object right before the catalogue commits it, and is never heard of again."""
    context = engine.context
    claims = ClaimStore(context.connection, context.keys, context.locations)
    taken: list[Any] = []

    def around(flip: Callable[[], list[str | None]], flips: Sequence[Flip]) -> list[str | None]:
        if not taken:
            taken.append(claims.take(flips[0].key, SOMEBODY, ttl_ms=500))
        return flip()

    _around_flip(around)
    carry(engine, roots)
