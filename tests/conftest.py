"""Fixtures shared by all tests: a real server of this test process's own, fleets on disk, real workers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import redis
from hypothesis import settings

from rebalance_tasks.core.errors import ServerUnavailable
from rebalance_tasks.drivers.local import compiled
from rebalance_tasks.embedded import EmbeddedServer, start_server
from tests.support import azurite
from tests.support.fleets import Content, Fleet, NodeSpec, write_fleet
from tests.support.ftp import Ftp, ftp_server
from tests.support.gcs import Gcs, gcs_front
from tests.support.sftp import Sftp, sftp_server
from tests.support.weed import Weed, weed_server
from tests.support.workers import ProcessFactory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# On a busy machine hypothesis took a slow example for a failed one; what may be slow is measured in tests/bench.
settings.register_profile("patient", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _nothing_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether machine code carries the objects of a test must not depend on the tests before it."""
    monkeypatch.setattr(compiled, "_carried", compiled._Carried())


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A real server for this test process alone (each xdist worker is one), on a free port."""
    try:
        server = start_server(tmp_path_factory.mktemp("redis"))
    except ServerUnavailable as exc:
        if os.environ.get("CI"):
            # A missing server must not turn a build green by skipping what it should have tested.
            pytest.fail(str(exc), pytrace=False)
        pytest.skip(str(exc))
    with server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedServer) -> str:
    """URL of the server, emptied for this test."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the emptied server; answers are ``str``."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """A real S3 server for this test process alone, on free ports."""
    with weed_server(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs(weed: Weed) -> Iterator[Gcs]:
    """The S3 server behind a front that speaks the API of Google Cloud Storage."""
    with gcs_front(weed.endpoint) as front:
        yield front


@pytest.fixture(scope="session")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sftp]:
    """A real SFTP server for this test process alone, on a free port."""
    with sftp_server(tmp_path_factory.mktemp("sftp")) as server:
        yield server


@pytest.fixture(scope="session")
def ftp() -> Iterator[Ftp]:
    """A real FTP server for this test process alone, on a free port."""
    with ftp_server() as server:
        yield server


@pytest.fixture(scope="session")
def azure_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a real server of Azure's blobs, with the container ``objects``; skips where none is installed."""
    found = azurite.binary()
    if found is None:
        pytest.skip("no azurite-blob on PATH (npm install azurite)")
    with azurite.azurite_server(tmp_path_factory.mktemp("azurite"), found) as port:
        azurite.make_container(port, "objects")
        yield port


class FleetFactory(Protocol):
    """Makes a fleet and points this process and its children at it; see `write_fleet`."""

    def __call__(
        self,
        nodes: Mapping[str, NodeSpec | Mapping[str, Content]],
        *,
        options: Mapping[str, Any] | None = None,
        fleet: Mapping[str, Any] | None = None,
    ) -> Fleet: ...


@pytest.fixture
def fleet_config(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> FleetFactory:
    """Factory: write directories and their ``rebalance.toml``, and set ``REBALANCE_CONFIG`` for the test and its processes."""
    for name in [name for name in os.environ if name.startswith("REBALANCE_")]:
        monkeypatch.delenv(name)

    def make(
        nodes: Mapping[str, NodeSpec | Mapping[str, Content]],
        *,
        options: Mapping[str, Any] | None = None,
        fleet: Mapping[str, Any] | None = None,
    ) -> Fleet:
        made = write_fleet(tmp_path, redis_url=redis_url, nodes=nodes, options=options, fleet=fleet)
        monkeypatch.setenv("REBALANCE_CONFIG", str(made.config))
        return made

    return make


@pytest.fixture
def processes(tmp_path: Path, redis_url: str, request: pytest.FixtureRequest) -> Iterator[ProcessFactory]:
    """Factory of real workers and beats; they end with the test, and their logs show when it fails.

    Name it after ``fleet_config`` has made a fleet: children see the environment of the moment they start.
    """
    factory = ProcessFactory(tmp_path, redis_url)
    try:
        yield factory
    finally:
        factory.stop_all()
        # Captured output of the teardown is part of a failing test's report only.
        print(factory.logs())  # noqa: T201
