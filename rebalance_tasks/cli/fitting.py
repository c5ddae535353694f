"""A page in two forms: the terminal's width says which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console, ConsoleOptions, RenderableType


@dataclass(frozen=True, slots=True)
class Fitting:
    """Shows the wide form where there are ``columns`` or more, else the narrow one."""

    wide: Callable[[], RenderableType]
    narrow: Callable[[], RenderableType]
    columns: int

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the form that fits."""
        yield (self.wide if options.max_width >= self.columns else self.narrow)()
