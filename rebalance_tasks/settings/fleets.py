"""What several fleets must agree on so that one worker can serve them all, and what each must have for itself."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.masking import masked_url
from rebalance_tasks.settings.problems import Problem, raise_problems

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rebalance_tasks.settings.model import Settings

#: A worker has one connection to the broker and one to the results.
_SHARED: Final = ("broker_url", "result_backend", "message_prefix")


def check_together(fleets: Sequence[Settings]) -> None:
    """Raise ConfigurationError, with everything that is wrong, where one worker cannot serve these fleets."""
    if len(fleets) > 1 and (problems := list(_problems(fleets))):
        raise_problems(problems)


def _problems(fleets: Sequence[Settings]) -> Iterator[Problem]:
    names = Counter(settings.fleet for settings in fleets)
    for settings in fleets:
        source = str(settings.config_path)
        if names[settings.fleet] > 1:
            text = "is in several files of REBALANCE_CONFIG; give each fleet a name of its own"
            yield Problem(source, ("fleet", "name"), text, repr(settings.fleet))
        if settings.priority is None:
            text = "is missing; fleets that share workers take turns by it: write for example priority = 1"
            yield Problem(source, ("fleet", "priority"), text)
        for name in _SHARED:
            own, first = (masked_url(getattr(one, name)) for one in (settings, fleets[0]))
            if getattr(settings, name) != getattr(fleets[0], name):
                text = (
                    f"fleets share workers over one broker, and fleet {fleets[0].fleet!r} has {first!r}; give both the same "
                    "(redis_url, where the state lies, may differ)"
                )
                yield Problem(source, ("fleet", name), text, repr(own))
