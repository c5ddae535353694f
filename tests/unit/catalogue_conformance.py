"""What every host's catalogue must do: subclass `CatalogueConformance` in a test module of yours and give it two fixtures.

``catalogue``: an empty one; ``again``: the same one, opened a second time, as another process has it.
"""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebalance_tasks.core.catalogue import Flip, flipped

if TYPE_CHECKING:
    from rebalance_tasks.core.catalogue import HostCatalogue

#: Keys that are easy to get wrong.
KEYS = ["a", "A", "deep/er", "new\nline", "ünïcødé/日本語", "e\u0301", "quote'\"", "%2e", "x" * 255]
NODES = [None, "n1", "n2", "n3"]
#: Fences of one history are above those of the one before.
HISTORIES = itertools.count(1)
FLIPS = st.builds(Flip, st.sampled_from(KEYS[:3]), st.sampled_from(NODES), st.sampled_from(NODES), st.integers(1, 4))


class CatalogueConformance:
    """Inherit, and define the fixtures ``catalogue`` and ``again``."""

    def test_an_empty_catalogue_has_nothing(self, catalogue: HostCatalogue) -> None:
        assert list(catalogue.locate(KEYS)) == [None] * len(KEYS)
        assert list(catalogue.entries()) == []
        assert list(catalogue.locate([])) == list(catalogue.flip([])) == []

    def test_keys_come_back_as_they_were_given(self, catalogue: HostCatalogue, again: HostCatalogue) -> None:
        flips = [Flip(key, None, f"n{number}", 1) for number, key in enumerate(KEYS)]
        assert list(catalogue.flip(flips)) == [flip.target for flip in flips]
        assert list(again.locate(KEYS[::-1])) == [flip.target for flip in flips[::-1]]
        assert dict(again.entries()) == {flip.key: flip.target for flip in flips}

    def test_a_flip_that_comes_twice_answers_done_twice(self, catalogue: HostCatalogue) -> None:
        catalogue.flip([Flip("a", None, "n1", 1)])
        for _ in range(2):
            assert list(catalogue.flip([Flip("a", "n1", "n2", 2)])) == ["n2"]
        assert list(catalogue.locate(["a"])) == ["n2"]

    def test_a_flip_of_what_is_elsewhere_changes_nothing_and_tells_where(self, catalogue: HostCatalogue) -> None:
        catalogue.flip([Flip("a", None, "n3", 1)])
        assert list(catalogue.flip([Flip("a", "n1", "n2", 9), Flip("b", "n1", "n2", 9)])) == ["n3", None]

    def test_one_refusal_in_a_batch_holds_up_no_other(self, catalogue: HostCatalogue) -> None:
        catalogue.flip([Flip(key, None, "n1", 1) for key in ("a", "c")])
        told = catalogue.flip([Flip("a", "n1", "n2", 2), Flip("b", "n1", "n2", 2), Flip("c", "n1", "n2", 2)])
        assert list(told) == ["n2", None, "n2"]

    def test_a_runner_that_comes_back_late_is_not_heard(self, catalogue: HostCatalogue, again: HostCatalogue) -> None:
        catalogue.flip([Flip("a", None, "n1", 1)])
        # Its successor moved the object, and a later job moved it back.
        again.flip([Flip("a", "n1", "n2", 20)])
        again.flip([Flip("a", "n2", "n1", 30)])
        assert list(catalogue.flip([Flip("a", "n1", "n2", 10)])) == ["n1"]

    def test_a_flip_to_where_it_is_shuts_out_the_late_and_changes_nothing(self, catalogue: HostCatalogue) -> None:
        catalogue.flip([Flip("a", None, "n1", 1)])
        assert list(catalogue.flip([Flip("a", "n1", "n1", 20)])) == ["n1"]
        assert list(catalogue.flip([Flip("a", "n1", "n2", 10)])) == ["n1"]

    def test_what_is_gone_is_gone_and_can_come_again(self, catalogue: HostCatalogue, again: HostCatalogue) -> None:
        catalogue.flip([Flip("a", None, "n1", 1)])
        assert list(catalogue.flip([Flip("a", "n1", None, 2)])) == [None]
        assert list(again.locate(["a"])) == [None]
        assert list(again.entries()) == []
        assert list(again.flip([Flip("a", None, "n2", 3)])) == ["n2"]

    def test_of_many_that_flip_one_key_at_once_one_wins_and_all_are_told(
        self, catalogue: HostCatalogue, again: HostCatalogue
    ) -> None:
        catalogue.flip([Flip("a", None, "n0", 1)])
        told: list[str | None] = []

        def flip(number: int) -> None:
            told.extend((catalogue, again)[number % 2].flip([Flip("a", "n0", f"n{number}", 2)]))

        threads = [threading.Thread(target=flip, args=(number,)) for number in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert told == [catalogue.locate(["a"])[0]] * 8

    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(flips=st.lists(FLIPS, max_size=12))
    def test_any_history_of_flips_is_the_rules(self, catalogue: HostCatalogue, flips: list[Flip]) -> None:
        base = 10 * next(HISTORIES)
        # What an earlier history left is taken away.
        catalogue.flip([Flip(key, node, None, base) for key, node in list(catalogue.entries())])
        places: dict[str, str | None] = {}
        fences = dict.fromkeys(KEYS, base)
        for flip in flips:
            asked = flip._replace(fence=base + flip.fence)
            if flipped(places.get(flip.key), fences[flip.key], asked):
                places[flip.key], fences[flip.key] = flip.target, asked.fence
            assert list(catalogue.flip([asked])) == [places.get(flip.key)]
        assert dict(catalogue.entries()) == {key: node for key, node in places.items() if node is not None}
