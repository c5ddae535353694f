"""What a host's catalogue must do, played against the one of docs/examples; and what is said of one that does not."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.control.catalogue import Catalogue
from rebalance_tasks.core.catalogue import Flip
from rebalance_tasks.core.errors import CatalogueUnreachable, ConfigurationError
from rebalance_tasks.settings import load_settings
from tests.support import host
from tests.unit.catalogue_conformance import CatalogueConformance

if TYPE_CHECKING:
    from pathlib import Path

    from rebalance_tasks.core.catalogue import HostCatalogue


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return host.install(tmp_path, monkeypatch)


class TestSqliteCatalogue(CatalogueConformance):
    """The example."""

    @pytest.fixture
    def catalogue(self, module: Any) -> HostCatalogue:
        made: HostCatalogue = module.open_catalogue([])
        return made

    @pytest.fixture
    def again(self, module: Any) -> HostCatalogue:
        made: HostCatalogue = module.open_catalogue([])
        return made


# -- a provider that is none ----------------------------------------------------------------------------------------------
def provider_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str = "acme") -> Catalogue:
    """A catalogue whose entry point leads to a module with this source."""
    (tmp_path / "wrong_provider.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    host.install(tmp_path, monkeypatch, entry="wrong_provider:provider")
    monkeypatch.delitem(sys.modules, "wrong_provider", raising=False)
    return Catalogue(f"provider:{name}", [])


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("provider = 7", "it is a int, not a callable that takes the nodes; a catalogue has locate, flip, entries"),
        ("class provider:\n    def __init__(self, nodes): ...\n    locate = print", "without flip, entries"),
        ("raise OSError('no driver')", "provider 'acme' failed: OSError: no driver"),
    ],
)
def test_a_provider_that_is_no_catalogue_is_refused_with_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, told: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"^\[fleet\] catalogue") as said:
        provider_of(tmp_path, monkeypatch, source).open()
    assert told in str(said.value)


def test_a_provider_that_is_not_installed_is_refused_with_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="provider 'other' is not installed; known are acme"):
        provider_of(tmp_path, monkeypatch, "provider = 7", name="other").open()


ANSWERING = """
class provider:
    def __init__(self, nodes): ...
    def locate(self, keys): {locate}
    def flip(self, flips): {flip}
    def entries(self): return [("../../etc/passwd", "n1"), ("a", "n2")]
"""


@pytest.mark.parametrize("answer", ["raise OSError('down')", "return None", "return ['n1', 'n2']", "return [7]"])
def test_whatever_a_catalogue_answers_but_a_place_for_each_key_means_that_nobody_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    made = provider_of(tmp_path, monkeypatch, ANSWERING.format(locate=answer, flip=answer))
    with pytest.raises(CatalogueUnreachable, match="provider:acme"):
        made.locate(["a"])
    with pytest.raises(CatalogueUnreachable, match="provider:acme"):
        made.flip([Flip("a", "n1", "n2", 1)])
    assert not made.answers()


def test_keys_that_lead_out_of_a_node_are_not_taken_from_a_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = provider_of(tmp_path, monkeypatch, ANSWERING.format(locate="return []", flip="return []"))
    assert list(made.entries()) == [("a", "n2")]
    assert made.answers()


def test_a_catalogue_is_opened_once_a_process_and_not_shared_with_a_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = provider_of(tmp_path, monkeypatch, ANSWERING.format(locate="return []", flip="return []"))
    first = made.open()
    assert made.open() is first
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert made.open() is not first


@pytest.mark.parametrize("locator", ["union", "crush"])
def test_a_provider_needs_the_locator_that_asks_it(locator: str) -> None:
    with pytest.raises(ConfigurationError, match='a provider says where objects are only with locator = "catalogue"'):
        load_settings(environ={"REBALANCE_LOCATOR": locator, "REBALANCE_CATALOGUE": "provider:acme"})


def test_a_catalogue_is_redis_or_a_provider() -> None:
    with pytest.raises(ConfigurationError, match="should be 'redis' or 'provider:<name>'"):
        load_settings(environ={"REBALANCE_LOCATOR": "catalogue", "REBALANCE_CATALOGUE": "acme"})
