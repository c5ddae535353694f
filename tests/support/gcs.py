"""Google Cloud Storage for tests: its XML API, spoken by a front of the tests' own before a real S3 server.

That API is S3's with other names for its headers and with generations in its conditions (Google's guide for those who come from S3 maps the
one to the other). So the front renames, signs, and asks SeaweedFS: what is shown is how obstore speaks to GCS, against a server that
keeps objects and honours conditions. It shows nothing of Google's own server.
"""

from __future__ import annotations

import contextlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from rebalance_tasks.embedded import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rebalance_tasks.drivers.s3.http import S3Endpoint

GOOG, AMZ = "x-goog-", "x-amz-"
#: What the server is asked with.
FORWARDED = {"content-type", "cache-control", "content-disposition", "content-encoding", "content-language", "range"}
CONDITIONS = {"if-match", "if-none-match", "if-modified-since", "if-unmodified-since"}
#: What belongs to the line and not to the answer.
OF_THE_LINE = {"connection", "content-length", "transfer-encoding", "date", "server"}
#: SeaweedFS makes a slash of a backslash, which GCS keeps: there it goes by another letter.
BACKSLASH, STAND_IN = "\\", "\uf05c"
#: "No generation": the object must not be there.
NEW = f"{GOOG}if-generation-match"


class Gcs(ThreadingHTTPServer):
    """The front; `options` are the ``storage_options`` of a node on it."""

    daemon_threads = True

    def __init__(self, endpoint: S3Endpoint) -> None:
        super().__init__((HOST, 0), _Handler)
        self.endpoint = endpoint

    def options(self) -> dict[str, Any]:
        """An account that needs no token, at an address of its own: obstore's way to an emulator."""
        account = {
            "gcs_base_url": f"http://{HOST}:{self.server_port}",
            "disable_oauth": True,
            **dict.fromkeys(("client_email", "private_key", "private_key_id"), ""),
        }
        return {"service_account_key": json.dumps(account), "allow_http": True}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    #: An answer goes out in one piece, not after the other side's patience.
    wbufsize = -1
    disable_nagle_algorithm = True

    def _pass_on(self) -> None:
        url = urlsplit(self.path)
        bucket, _, name = _there(unquote(url.path[1:])).partition("/")
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        answer = cast("Gcs", self.server).endpoint.request(
            self.command,
            bucket,
            name,
            query={key: _there(value) for key, value in parse_qsl(url.query, keep_blank_values=True)},
            headers=_to_s3({key.lower(): value for key, value in self.headers.items()}),
            body=body,
        )
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            if key not in OF_THE_LINE:
                self.send_header(key.replace(AMZ, GOOG, 1) if key.startswith(AMZ) else key, value)
        told = answer.body if name else answer.body.replace(STAND_IN.encode(), BACKSLASH.encode())
        length = answer.headers.get("content-length", "0") if self.command == "HEAD" else str(len(told))
        self.send_header("content-length", length)
        self.end_headers()
        self.wfile.write(told)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815  as http.server calls them

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _there(name: str) -> str:
    """What the server calls it."""
    return name.replace(BACKSLASH, STAND_IN)


def _to_s3(headers: Mapping[str, str]) -> dict[str, str]:
    """Return a request's headers as S3 calls them; whoever asks is not looked at."""
    sent = {key: value for key, value in headers.items() if key in FORWARDED | CONDITIONS}
    for key, value in headers.items():
        if key == NEW:
            assert value == "0", "only obstore's own condition is spoken"
            sent["if-none-match"] = "*"
        elif key.startswith(GOOG):
            sent[key.replace(GOOG, AMZ, 1)] = value.replace(quote(BACKSLASH), quote(STAND_IN))
    return sent


@contextlib.contextmanager
def gcs_front(endpoint: S3Endpoint) -> Iterator[Gcs]:
    """Serve until the context ends."""
    with Gcs(endpoint) as front:
        thread = Thread(target=front.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield front
        finally:
            front.shutdown()
            thread.join()
