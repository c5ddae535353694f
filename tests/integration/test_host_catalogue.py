"""Where the host's catalogue says where objects are: it is down, refuses, answers twice or late; jobs, undo, reindex go by its word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks import Flip
from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.catalogue import AWAY, Catalogue
from rebalance_tasks.control.doctor import examine_catalogue
from rebalance_tasks.control.locate import Locator
from rebalance_tasks.control.reindex import reindex
from rebalance_tasks.control.start import start_job
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.control.undo import plan_undo
from rebalance_tasks.core.errors import CatalogueUnreachable, ConfigurationError
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.migration.committing import Host
from rebalance_tasks.store.claims import ClaimStore
from tests.support import checker, host
from tests.support.engine import Engine, moves_between
from tests.support.forgetting import forget, remember
from tests.support.hooks import DAY_MS, SIZES, before

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration


@pytest.fixture
def fleet(fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fleet:
    host.install(tmp_path, monkeypatch)
    made = fleet_config({"n1": SIZES, "n2": {"resident": 3}}, fleet=host.HOSTED)
    host.fill(made.roots)
    return made


@pytest.fixture
def engine(fleet: Fleet) -> Engine:
    made = Engine()
    made.start(moves_between("n1", "n2", SIZES))
    return made


class Trouble:
    """What goes wrong with flips: nothing, they are not made, or they are made and nobody hears of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, made: bool) -> None:
        self.down = True
        original = Catalogue.flip

        def flip(catalogue: Catalogue, flips: Sequence[Flip]) -> list[str | None]:
            if not self.down:
                return original(catalogue, flips)
            if made:
                original(catalogue, flips)
            raise CatalogueUnreachable(host.HOSTED["catalogue"], "down")

        monkeypatch.setattr(Catalogue, "flip", flip)


def agreed(fleet: Fleet, engine: Engine) -> dict[str, str]:
    """The host's places, after everything was cleaned up: each object is there, once, and found by them."""
    for _ in range(3):
        engine.cleanup(later_ms=DAY_MS)
    places = dict(host.catalogue().entries())
    assert places == {key: node for node in fleet.roots for key in fleet.objects(node)}
    locator = Locator(engine.context)
    assert {key: str(locator.locate(key)) for key in places} == places
    return places


@pytest.mark.parametrize("made", [False, True], ids=["not made", "made, and the answer lost"])
def test_a_job_waits_for_a_catalogue_that_is_down_and_goes_on_by_itself(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    written = checker.record(fleet.roots)
    trouble = Trouble(monkeypatch, made=made)
    engine.work()
    assert engine.job().status is RebalanceStatus.PAUSED
    assert engine.job().paused_reasons == (AWAY,)
    run_sweep(engine.context)
    assert engine.job().paused_reasons == (AWAY,)
    assert {finding.verdict for finding in examine_catalogue(engine.context)} == {"fail"}
    # Whatever became of the flips, each object is where readers are sent.
    locator = Locator(engine.context)
    for key, node in host.catalogue().entries():
        assert str(locator.locate(key)) == node
        assert (fleet.roots[node] / key).exists()
    trouble.down = False
    run_sweep(engine.context)
    assert engine.job().paused_reasons == ()
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (len(SIZES), {})
    checker.check(fleet.roots, written, job)
    assert set(agreed(fleet, engine).values()) == {"n2"}


@pytest.mark.parametrize("made", [False, True], ids=["not made", "made, and the answer lost"])
def test_a_cancel_does_not_wait_for_a_catalogue_that_is_down(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    written = checker.record(fleet.roots)
    trouble = Trouble(monkeypatch, made=made)
    engine.work()
    lifecycle.cancel(engine.context, "j1", requested_by="test")
    job = engine.finish()
    assert (job.status, job.skipped_moves) == (RebalanceStatus.CANCELLED, len(SIZES))
    engine.cleanup(later_ms=DAY_MS)  # it is down: nothing may be taken back yet
    assert fleet.objects("n1").keys() & fleet.objects("n2").keys() == SIZES.keys()
    trouble.down = False
    assert set(agreed(fleet, engine).values()) == ({"n2"} if made else {"n1", "n2"})
    checker.check(fleet.roots, written, trash=True)


@pytest.mark.parametrize(("place", "state"), [("n1", "failed_moves"), ("n3", "skipped_moves"), (None, "skipped_moves")])
def test_what_the_host_does_not_commit_is_counted_and_its_copy_taken_off(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, place: str | None, state: str
) -> None:
    def refuse(*_: Any) -> None:
        if place == "n1":  # a newer fence than any runner of this job has
            host.catalogue().flip([Flip("four", "n1", "n1", 2**53)])
        else:
            host.catalogue().flip([Flip("four", "n1", place, 1)])

    before(monkeypatch, Host, "commit", refuse)
    job = engine.finish()
    assert (job.completed_moves, getattr(job, state), job.failures) == (len(SIZES) - 1, 1, {"catalogue_refused": 1})
    assert "four" in fleet.objects("n1")
    assert "four" not in fleet.objects("n2")
    assert dict(host.catalogue().entries()).get("four") == place


def test_what_the_host_has_committed_while_a_writer_claimed_it_is_not_counted_as_cancelled(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copy is handed back until the claim ends, also when an operator cancels meanwhile."""
    context, written = engine.context, checker.record(fleet.roots)
    claimed: list[str] = []
    claims = ClaimStore(context.connection, context.keys, context.locations)

    def claim(_: Host, keys: Sequence[str]) -> None:
        if not claimed:
            claimed.append(keys[0])
            claims.take(keys[0], "write:somebody", ttl_ms=400)
            lifecycle.cancel(context, "j1", requested_by="test")

    before(monkeypatch, Host, "commit", claim)
    job = engine.finish()
    # The host had committed all of them: there was nothing left to cancel.
    assert job.status is RebalanceStatus.COMPLETED
    assert dict(host.catalogue().entries())[claimed[0]] == "n2"
    assert (job.completed_moves, job.skipped_moves) == (len(SIZES), 0)
    checker.check(fleet.roots, written, job)
    assert agreed(fleet, engine)[claimed[0]] == "n2"


def test_a_job_is_undone_through_the_host(fleet: Fleet, engine: Engine) -> None:
    before_it = agreed_places()
    engine.finish()
    assert set(agreed(fleet, engine).values()) == {"n2"}
    back = plan_undo(engine.context, "j1").plan
    start_job(engine.context, back.plan_id, job_id="j2", requested_by="test")
    assert engine.finish("j2").completed_moves == len(SIZES)
    assert agreed(fleet, engine) == before_it


def agreed_places() -> dict[str, str]:
    return dict(host.catalogue().entries())


def test_a_job_that_redis_forgot_after_the_host_had_committed_is_made_once_more_without_a_second_copy(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten, written = remember(engine), checker.record(fleet.roots)
    trouble = Trouble(monkeypatch, made=True)
    engine.work()
    trouble.down = False
    forget(engine, forgotten)
    engine = Engine()
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (len(SIZES), {})
    checker.check(fleet.roots, written, job)
    assert set(agreed(fleet, engine).values()) == {"n2"}


@pytest.mark.parametrize("made", [False, True], ids=["not committed", "committed"])
def test_a_reindex_goes_by_the_hosts_word_for_what_is_on_two_nodes(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    trouble = Trouble(monkeypatch, made=made)
    engine.work()
    trouble.down = False
    engine.context.connection.client.flushall()
    engine = Engine()
    report = reindex(engine.context)
    assert (report.frees, report.ambiguous, report.catalogue_lacks) == (len(SIZES), 0, 0)
    assert set(agreed(fleet, engine).values()) == {"n2"}


def test_a_reindex_puts_right_what_leads_nowhere_and_tells_what_the_host_does_not_have(
    fleet: Fleet, engine: Engine
) -> None:
    lifecycle.cancel(engine.context, "j1", requested_by="test")
    engine.finish()
    host.catalogue().flip([Flip("four", "n1", "n2", 1), Flip("five", "n1", None, 1)])
    report = reindex(engine.context)
    assert (report.locations, report.catalogue_lacks) == (1, 1)
    assert host.catalogue().locate(["four", "five"]) == ["n1", None]
    assert Locator(engine.context).locate("five").via == "survey"


def test_readers_look_on_the_nodes_while_the_catalogue_is_down(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.finish()

    def locate(*_: Any) -> None:
        raise CatalogueUnreachable(host.HOSTED["catalogue"], "down")

    monkeypatch.setattr(Catalogue, "locate", locate)
    found = Locator(engine.context).locate("four")
    assert (found, found.via) == ("n2", "forwarding")


def test_no_job_starts_and_the_doctor_tells_where_the_provider_is_missing(
    fleet_config: FleetFactory,
) -> None:
    fleet_config({"n1": {"a": 1}, "n2": {}}, fleet={**host.HOSTED, "catalogue": "provider:absent"})
    engine = Engine()
    with pytest.raises(ConfigurationError, match="provider 'absent' is not installed"):
        engine.start(moves_between("n1", "n2", {"a": 1}))
    (finding,) = examine_catalogue(engine.context)
    assert (finding.verdict, finding.name) == ("fail", "catalogue")
    assert "install the provider beside every worker" in finding.next_step


def test_the_doctor_is_content_with_a_catalogue_that_answers(engine: Engine) -> None:
    (finding,) = examine_catalogue(engine.context)
    assert (finding.verdict, finding.detail) == ("ok", "provider:acme answers")
