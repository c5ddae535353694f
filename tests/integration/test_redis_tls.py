"""``rediss://``: certificates are checked, and a job runs through it. The TLS is a front's, since the bundled server has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.store import connection
from rebalance_tasks.store.connection import Connection, connect
from rebalance_tasks.store.errors import StateUnreachable
from tests.support.rig import rig
from tests.support.servers import Certificate, FragileServer, Line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate.make(tmp_path)


@pytest.fixture
def front(tmp_path: Path, certificate: Certificate) -> Iterator[Line]:
    with FragileServer(tmp_path / "redis") as server, Line(server.port, tls=certificate.front()) as line:
        yield line


def test_a_job_runs_through_tls(front: Line, certificate: Certificate, tmp_path: Path) -> None:
    with rig(tmp_path, f"rediss://localhost:{front.port}/0?ssl_ca_certs={certificate.cert}") as fleet:
        fleet.worker()
        fleet.start()
        fleet.check(fleet.finish())


@pytest.mark.parametrize(
    ("host", "options", "said"),
    [
        ("localhost", "", "self-signed"),
        ("127.0.0.1", "ssl_ca_certs={cert}", "mismatch"),
        ("localhost", "ssl_ca_certs={other}", "certificate"),
    ],
    ids=["an unknown authority", "another name", "another certificate"],
)
def test_a_certificate_that_does_not_prove_the_server_is_refused(
    front: Line,
    certificate: Certificate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    options: str,
    said: str,
) -> None:
    monkeypatch.setattr(connection, "RETRY_S", 0.1)
    (tmp_path / "other").mkdir()
    other = Certificate.make(tmp_path / "other")
    query = options.format(cert=certificate.cert, other=other.cert)
    with pytest.raises(StateUnreachable, match=f"(?i){said}"):
        Connection(connect(f"rediss://{host}:{front.port}/0?{query}")).now_ms()


def test_checks_can_be_lifted_one_by_one(front: Line, certificate: Certificate) -> None:
    for options in (f"ssl_ca_certs={certificate.cert}&ssl_check_hostname=false", "ssl_cert_reqs=none"):
        assert Connection(connect(f"rediss://127.0.0.1:{front.port}/0?{options}")).now_ms() > 0
