"""The scale model: what must hold of any forecast, and forecasts that can be worked out by hand."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance_tasks.cli.app import run
from rebalance_tasks.control.start import LEAST_OBJECTS
from rebalance_tasks.control.start import SHARES as CUT_INTO
from rebalance_tasks.core import scale
from rebalance_tasks.core.scale import (
    SHARES,
    STRETCH_BYTES,
    STRETCH_OBJECTS,
    Costs,
    Farm,
    Work,
    forecast,
    stretches_of,
)
from rebalance_tasks.migration.slice import BATCH_BYTES, BATCH_OBJECTS
from tests.bench import bench_scale

NOTHING = Costs(**dict.fromkeys(Costs.model_fields, 0.0))
WORKS = st.builds(
    Work,
    objects=st.integers(1, 200_000),
    mean_bytes=st.floats(0, 10**8),
    groups=st.integers(1, 50),
    nodes=st.integers(2, 60),
)
RATES = st.none() | st.floats(10**5, 10**10)
FARMS = st.builds(
    Farm,
    hosts=st.integers(1, 6),
    processes=st.integers(1, 8),
    cores=st.integers(1, 8),
    shares_cores=st.booleans(),
    limit=st.integers(1, 20),
    throttle=RATES,
    node_rate=RATES,
)


def test_the_model_cuts_groups_as_a_start_does() -> None:
    assert (SHARES, STRETCH_BYTES, STRETCH_OBJECTS) == (CUT_INTO, BATCH_BYTES, (LEAST_OBJECTS, BATCH_OBJECTS))
    assert stretches_of(Work(objects=100, mean_bytes=10)) == 1
    assert stretches_of(Work(objects=8_192, mean_bytes=10)) == 16
    assert stretches_of(Work(objects=8_192, mean_bytes=10, groups=8)) == 32
    assert stretches_of(Work(objects=10, mean_bytes=STRETCH_BYTES * 3)) == 10


# -- by hand ----------------------------------------------------------------------------------------------------------
def test_processors_bind_where_nothing_else_does() -> None:
    costs = NOTHING.model_copy(update={"object_s": 0.001})
    work = Work(objects=32_000, mean_bytes=0, groups=4, nodes=8)
    one = forecast(work, Farm(processes=1, cores=1, limit=4), costs)
    assert one.seconds == pytest.approx(32)
    assert one.worker_s == pytest.approx(32)
    assert one.bound_by == "processors"
    assert forecast(work, Farm(processes=2, cores=2, limit=4), costs).seconds == pytest.approx(16)
    # More processes than processors share them.
    assert forecast(work, Farm(processes=4, cores=2, limit=4), costs).seconds == pytest.approx(16)
    assert forecast(work, Farm(hosts=4, processes=2, cores=2, limit=4), costs).seconds == pytest.approx(4)


def test_redis_binds_however_many_hosts_there_are() -> None:
    costs = NOTHING.model_copy(update={"redis_object_s": 0.001})
    found = forecast(Work(objects=32_000, mean_bytes=0, groups=32), Farm(hosts=100, limit=32), costs)
    assert found.seconds == pytest.approx(32, rel=0.01)
    assert found.redis_load == pytest.approx(1, rel=0.01)
    assert found.bound_by == "redis"


def test_who_works_looks_at_the_flags_and_who_waits_for_redis_does_not() -> None:
    """A second of work costs Redis a tenth of one; of 1,000 processes it can serve no more than ten in time."""
    costs = NOTHING.model_copy(update={"object_s": 0.001, "redis_second_s": 0.1})
    work = Work(objects=1_000_000, mean_bytes=0, groups=1_000, nodes=2_000)
    few = forecast(work, Farm(hosts=5, processes=1, limit=1_000), costs)
    assert few.seconds == pytest.approx(200, rel=0.12)
    assert few.redis_s == pytest.approx(100)
    assert few.worked_s == pytest.approx(1_000)
    many = forecast(work, Farm(hosts=1_000, processes=1, limit=1_000), costs)
    assert many.seconds == pytest.approx(100, rel=0.02), "a thousand seconds of work are looked at, however many do it"
    assert many.redis_load == pytest.approx(1, rel=0.02)
    assert many.bound_by == "redis"


def test_one_who_is_held_back_by_a_throttle_looks_at_the_flags_meanwhile() -> None:
    costs = NOTHING.model_copy(update={"redis_second_s": 0.01})
    work = Work(objects=1_000, mean_bytes=10**6, groups=10, nodes=20)
    found = forecast(work, Farm(hosts=10, processes=1, limit=10, throttle=10**7), costs)
    assert found.redis_s == pytest.approx(10 * 10 * 0.01)
    assert found.seconds == pytest.approx(10, rel=0.02)


def test_a_throttle_binds_each_group_and_permits_say_how_many_there_are() -> None:
    work = Work(objects=1_000, mean_bytes=10**6, groups=10, nodes=20)
    found = forecast(work, Farm(hosts=10, limit=10, throttle=10**7), NOTHING)
    assert found.seconds == pytest.approx(10)
    assert found.bound_by == "throttle"
    assert found.bytes_per_s == pytest.approx(10**8)
    found = forecast(work, Farm(hosts=10, limit=5, throttle=10**7), NOTHING)
    assert found.seconds == pytest.approx(20)
    assert found.bound_by == "permits"


def test_a_start_that_takes_longer_than_the_rest_is_told() -> None:
    costs = NOTHING.model_copy(update={"start_object_s": 0.001, "object_s": 0.0001})
    found = forecast(Work(objects=10_000, mean_bytes=0), Farm(processes=1, cores=1), costs)
    assert found.seconds == pytest.approx(11)
    assert found.bound_by == "start"


def test_two_nodes_take_no_more_than_they_can() -> None:
    work = Work(objects=1_000, mean_bytes=10**6, groups=10, nodes=2)
    found = forecast(work, Farm(hosts=10, limit=10, node_rate=10**8), NOTHING)
    assert found.seconds == pytest.approx(10, rel=0.02)
    assert found.bound_by == "nodes"


def test_processes_that_wait_for_a_permit_are_told() -> None:
    costs = NOTHING.model_copy(update={"group_s": 1.0})
    found = forecast(Work(objects=40, mean_bytes=0, groups=40, nodes=80), Farm(hosts=10, limit=1), costs)
    assert found.seconds == pytest.approx(40)
    assert found.bound_by == "permits"


# -- whatever the fleet -----------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(WORKS, FARMS)
def test_no_forecast_is_faster_than_any_of_its_parts_allow(work: Work, farm: Farm) -> None:
    found = forecast(work, farm)
    total = work.objects * work.mean_bytes
    slack = 1 - 1e-6
    assert found.seconds >= found.start_s
    assert found.seconds >= slack * found.worker_s / (farm.hosts * min(farm.processes, farm.cores))
    assert found.seconds >= slack * found.redis_s
    assert found.redis_load <= 1 + 1e-6
    assert found.worked_s >= slack * work.objects * (Costs().object_s + work.mean_bytes * Costs().byte_s)
    if farm.throttle is not None:
        assert found.seconds >= slack * total / min(farm.limit, work.groups) / farm.throttle
    if farm.node_rate is not None:
        assert found.seconds >= slack * 2 * total / work.nodes / farm.node_rate


@settings(max_examples=40, deadline=None)
@given(WORKS, FARMS)
def test_a_forecast_is_a_function_of_what_it_is_given(work: Work, farm: Farm) -> None:
    assert forecast(work, farm) == forecast(work, farm)


@pytest.mark.parametrize("hosts", [1, 4, 16])
def test_more_hosts_make_it_no_slower(hosts: int) -> None:
    work = Work(objects=500_000, mean_bytes=65_536, groups=99, nodes=100)
    farm = Farm(hosts=hosts, processes=8, cores=8, limit=50, node_rate=10**8)
    more = farm.model_copy(update={"hosts": hosts * 2})
    # Who comes first may get in the way of who would end first, by a stretch or two (Graham 1966).
    assert forecast(work, more).seconds <= forecast(work, farm).seconds * 1.05


def test_a_thousand_million_objects_are_forecast_in_bundles_that_cost_the_same() -> None:
    work = Work(objects=10**9, mean_bytes=65_536, groups=999, nodes=1_000)
    found = forecast(work, Farm(hosts=100, processes=8, cores=8, limit=500))
    assert found.worker_s == pytest.approx(
        10**9 * (Costs().object_s + 65_536 * Costs().byte_s)
        + stretches_of(work) * Costs().stretch_s
        + 999 * Costs().group_s
    )


# -- fitting ----------------------------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-6, 1e-2), min_size=12, max_size=12))
def test_costs_are_found_again_from_runs_that_they_made(values: list[float]) -> None:
    names = [name for name in Costs.model_fields if name not in {"late_s", "fixed_s", "redis_object_bytes"}]
    known = NOTHING.model_copy(update=dict(zip(names, values, strict=True)))
    runs = []
    for objects, size, groups in bench_scale.CALIBRATION:
        work = Work(objects=objects, mean_bytes=size, groups=groups, nodes=2 * groups)
        told = forecast(work, Farm(), known)
        runs.append(bench_scale.Run(work, told.seconds, told.worker_s, told.control_s, told.redis_s))
    found = bench_scale.costs_of(runs, Farm(), redis_second_s=known.redis_second_s)
    for name in names:
        assert getattr(found, name) == pytest.approx(getattr(known, name), rel=1e-3), name


@pytest.mark.parametrize(("late_s", "fixed_s"), [(0.0, 0.02), (0.2, 0.0), (0.15, 0.03)])
def test_what_a_small_job_takes_by_the_clock_is_told_from_what_a_large_one_takes_longer(
    late_s: float, fixed_s: float
) -> None:
    known = Costs(late_s=late_s, fixed_s=fixed_s)
    runs = []
    for objects, size, groups in bench_scale.CALIBRATION:
        work = Work(objects=objects, mean_bytes=size, groups=groups, nodes=2 * groups)
        told = forecast(work, Farm(), known)
        runs.append(bench_scale.Run(work, told.seconds, told.worker_s, told.control_s, told.redis_s))
    found = bench_scale.costs_of(runs, Farm(), redis_second_s=known.redis_second_s)
    for objects in bench_scale.SIZES:
        work = Work(objects=objects, mean_bytes=bench_scale.OBJECT_BYTES, groups=8, nodes=16)
        assert forecast(work, Farm(), found).seconds == pytest.approx(forecast(work, Farm(), known).seconds, rel=0.03)


def test_fitted_costs_become_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, fitted = (
        Path(scale.__file__).read_text(encoding="utf-8"),
        NOTHING.model_copy(update={"object_s": 12.345e-6}),
    )
    (tmp_path / "fitted.py").write_text(bench_scale.with_costs(source, fitted), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    found = importlib.import_module("fitted").Costs().model_dump()
    assert found == NOTHING.model_dump() | {"object_s": 12.3e-6}
    with pytest.raises(ValueError, match="byte_s"):
        bench_scale.with_costs(source.replace("byte_s: Seconds", "byte_seconds: Seconds"), NOTHING)


# -- the command ------------------------------------------------------------------------------------------------------
def test_the_command_prints_a_forecast(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "scale", "--objects", "1000", "--nodes", "4", "--hosts", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["hosts"], told["groups"]) == (2, 3)
    assert told["seconds"] > 0
    assert run(["simulate", "scale", "--throttle", "none", "--node-rate", "100MB/s"]) == 0
    assert "BOUND BY" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--costs", "{"], "--costs"),
        (["--costs", '{"object_s": -1}'], "object_s"),
        (["--throttle", "fast"], "--throttle"),
        (["--mean-size", "big"], "--mean-size"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_name(
    flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", "scale", *flags]) == 2
    assert named in capsys.readouterr().err
