"""Logs: event and fields, ids bound once, secrets masked, other people's logging left alone."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
import structlog

from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.telemetry import ROOT, LineFormatter, bound_ids, configure_logging, get_logger, use_json

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET: Final = "hunter2"  # noqa: S105  what must not be shown


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    logger = logging.getLogger(ROOT)
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(before[0])
    logger.propagate = before[1]
    logger.handlers[:] = before[2]
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_has_event_fields_level_logger_and_time(stream: io.StringIO) -> None:
    configure_logging("info", json=True, stream=stream)
    get_logger("rebalance_tasks.migration.slice").info("move.flipped", object_key="a/ü\nb", size_bytes=5)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "rebalance_tasks.migration.slice",
        "event": "move.flipped",
        "object_key": "a/ü\nb",
        "size_bytes": 5,
    }


def test_a_text_line_is_one_line_and_quotes_what_could_be_mistaken(stream: io.StringIO) -> None:
    configure_logging("INFO", json=False, stream=stream)
    get_logger("x").info("move.flipped", object_key="a b\nlevel=error", node="n1", empty="", nothing=None)
    assert stream.getvalue().endswith(
        'INFO    move.flipped object_key="a b\\nlevel=error" node=n1 empty="" nothing=None\n'
    )
    assert stream.getvalue().count("\n") == 1


def test_without_a_terminal_json_is_the_default(stream: io.StringIO) -> None:
    configure_logging(stream=stream)
    get_logger().warning("x")
    assert lines(stream)[0]["event"] == "x"


def test_ids_are_bound_inside_the_context_only(stream: io.StringIO) -> None:
    configure_logging(json=True, stream=stream)
    log = get_logger("tasks")
    with bound_ids(task_id="t1", job_id="rebal-1", group_id=None):
        with bound_ids(group_id="g1"):
            log.info("inner")
        log.info("outer")
    log.info("outside")
    ids = [{name: line[name] for name in line if name.endswith("_id")} for line in lines(stream)]
    assert ids == [{"task_id": "t1", "job_id": "rebal-1", "group_id": "g1"}, {"task_id": "t1", "job_id": "rebal-1"}, {}]


@pytest.mark.parametrize("json_lines", [True, False])
def test_secrets_are_masked_in_events_fields_and_exceptions(json_lines: bool, stream: io.StringIO) -> None:
    configure_logging(json=json_lines, stream=stream)
    url = f"redis://:{SECRET}@h/0"
    log = get_logger("x")
    event = f"connecting to {url}"
    log.info(
        event,
        url=url,
        nested={"urls": [url]},
        password=SECRET,
        storage_options={"k": SECRET},
    )
    log.info("to %s", url)
    log.warning("lost", error=ConnectionError(url))
    try:
        raise ConnectionError(f"cannot reach {url}")  # noqa: EM102, TRY003, TRY301  the message is what is tested
    except ConnectionError:
        log.exception("redis.lost")
    logging.getLogger(f"{ROOT}.plain").warning("from %s", url)
    text = stream.getvalue()
    assert SECRET not in text
    assert text.count("redis://:***@h/0") >= 6
    assert "ConnectionError" in text


def test_levels_below_the_configured_one_are_dropped(stream: io.StringIO) -> None:
    configure_logging("WARNING", json=True, stream=stream)
    log = get_logger("x")
    log.info("no")
    log.warning("yes")
    configure_logging("DEBUG", json=True, stream=stream)
    log.debug("now")
    assert [line["event"] for line in lines(stream)] == ["yes", "now"]


def test_configuring_twice_does_not_double_the_lines(stream: io.StringIO) -> None:
    configure_logging(json=True, stream=io.StringIO())
    configure_logging(json=True, stream=stream)
    get_logger().info("once")
    assert len(lines(stream)) == 1


def test_lines_that_our_handler_writes_do_not_go_to_the_root_as_well(
    stream: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    configure_logging(json=True, stream=stream)
    get_logger().info("once")
    assert len(lines(stream)) == 1
    assert not caplog.records


def test_handlers_that_others_put_on_our_logger_stay(stream: io.StringIO) -> None:
    theirs = logging.NullHandler()
    logging.getLogger(ROOT).addHandler(theirs)
    configure_logging(stream=stream)
    assert theirs in logging.getLogger(ROOT).handlers


def test_an_unknown_level_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="'LOUD' is unknown; allowed: DEBUG, INFO"):
        configure_logging("LOUD")


def test_where_the_root_has_handlers_lines_go_there_and_none_of_ours_is_added(caplog: pytest.LogCaptureFixture) -> None:
    assert logging.getLogger().handlers  # pytest's, as a worker's would be Celery's
    configure_logging("INFO")
    assert logging.getLogger(ROOT).propagate
    get_logger("x").info("move.flipped", job_id="rebal-1")
    assert [record.getMessage() for record in caplog.records] == ["move.flipped job_id=rebal-1"]


def test_percent_signs_in_an_event_are_text(caplog: pytest.LogCaptureFixture) -> None:
    configure_logging("INFO")
    get_logger("x").info("100%s done", key="%d")
    assert caplog.records[0].getMessage() == "100%s done key=%d"


def test_foreign_records_become_json_too(stream: io.StringIO) -> None:
    foreign = logging.Logger("celery.worker")  # noqa: LOG001  unregistered on purpose: nothing to clean up
    foreign.addHandler(logging.StreamHandler(stream))
    use_json(foreign)
    foreign.warning("Task %s received from redis://:%s@h", "rebalance.check", SECRET)
    try:
        1 / 0  # noqa: B018  raises
    except ZeroDivisionError:
        foreign.exception("broke")
    first, second = lines(stream)
    assert first["event"] == "Task rebalance.check received from redis://:***@h"
    assert (first["logger"], first["level"]) == ("celery.worker", "warning")
    assert "ZeroDivisionError" in second["exception"]


def test_our_records_keep_their_fields_under_a_foreign_handler_with_our_formatter(stream: io.StringIO) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(json=True))
    logging.getLogger(ROOT).addHandler(handler)
    configure_logging("INFO")
    get_logger("x").info("move.flipped", size_bytes=5)
    assert lines(stream)[0]["size_bytes"] == 5


def test_a_field_that_json_does_not_know_is_written_as_text(stream: io.StringIO) -> None:
    configure_logging(json=True, stream=stream)
    get_logger().info("x", odd={1}, error=ValueError("y"))
    assert lines(stream)[0]["odd"] == "{1}"


def test_names_are_put_below_the_package() -> None:
    assert get_logger("demo").name == f"{ROOT}.demo"
    assert get_logger(f"{ROOT}.store").name == f"{ROOT}.store"
    assert get_logger("rebalance_tasks_other").name == f"{ROOT}.rebalance_tasks_other"


def test_importing_configures_nothing() -> None:
    code = (
        "import logging, structlog\n"
        "import rebalance_tasks.telemetry as t\n"
        "t.get_logger('x')\n"
        "assert not structlog.is_configured()\n"
        "assert not logging.getLogger().handlers and not logging.getLogger('rebalance_tasks').handlers\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
