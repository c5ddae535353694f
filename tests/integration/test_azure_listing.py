"""How Azure is told where a listing begins (``startFrom``, version 2026-02-06 of its API), by a server that knows nothing but listings.

Azurite does not know the parameter. This server follows Microsoft's page of the operation *List Blobs*: names in order, from ``startFrom`` on (itself
included), so many on a page, the rest by a marker. It shows how we speak to Azure, and nothing of Azure's own server.
"""

from __future__ import annotations

import contextlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pytest

from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.gcs_azure.options import open_obstore_bucket
from rebalance_tasks.drivers.key_ranges import KeyRange, cut_points, pages_in
from rebalance_tasks.embedded import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.drivers.gcs_azure.bucket import ObstoreBucket
    from rebalance_tasks.drivers.key_ranges import Ranged

pytestmark = pytest.mark.integration

ROOT = "root/"
KEYS = [f"flat/{number:03}" for number in range(60)] + ["flat-é", "flat~"]
PAGE = 7


class Listings(ThreadingHTTPServer):
    """Lists names; notes where each listing was to begin, and how many names it showed."""

    daemon_threads = True

    def __init__(self, names: list[str], *, deaf: bool) -> None:
        super().__init__((HOST, 0), _Handler)
        self.names, self.deaf = sorted(names), deaf
        self.begun: list[str] = []
        self.shown = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = cast("Listings", self.server)
        asked = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        assert (asked["comp"], asked["restype"]) == ("list", "container")
        # A marker says all by itself; the first page has none.
        begin = asked.get("marker", "" if server.deaf else asked.get("startFrom", ""))
        if "marker" not in asked:
            server.begun.append(begin)
        left = [name for name in server.names if name.startswith(asked.get("prefix", "")) and name >= begin]
        shown, marker = left[:PAGE], escape("".join(left[PAGE : PAGE + 1]))
        server.shown += len(shown)
        properties = (
            "<Last-Modified>Thu, 01 Jul 2021 10:44:59 GMT</Last-Modified><Etag>0x8D9</Etag>"
            "<Content-Length>3</Content-Length><Content-Type>text/plain</Content-Type><BlobType>BlockBlob</BlobType>"
        )
        blobs = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties>{properties}</Properties></Blob>" for name in shown
        )
        answer = (
            f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="http://{HOST}/" ContainerName="objects">'
            f"<Blobs>{blobs}</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>"
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/xml")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def listed(*, deaf: bool = False) -> Iterator[tuple[Listings, ObstoreBucket]]:
    with Listings([ROOT + key for key in KEYS], deaf=deaf) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        endpoint = f"http://{HOST}:{server.server_port}/account"
        options = {"account_name": "account", "endpoint": endpoint, "skip_signature": True, "allow_http": True}
        node = NodeDescriptor(node_id="n", url="az://objects", storage_options=options)
        try:
            yield server, open_obstore_bucket(node)[0]
        finally:
            server.shutdown()
            thread.join()


def driver_of(bucket: ObstoreBucket) -> Ranged:
    return cast("Ranged", SimpleNamespace(bucket=bucket, prefix=ROOT, node_id="n"))


def test_a_listing_begins_after_the_name_that_it_is_told() -> None:
    with listed() as (server, bucket):
        found = [one.name for page in bucket.pages(ROOT, after=f"{ROOT}flat/040") for one in page]
        assert found == [name for name in server.names if name > f"{ROOT}flat/040"]
        assert server.begun == [f"{ROOT}flat/040"]
        # The name itself is in Azure's answer, and in none of ours.
        assert server.shown == len(found) + 1


def test_a_flat_container_is_cut_into_ranges_that_hold_each_object_once() -> None:
    with listed() as (_, bucket):
        cuts = cut_points(driver_of(bucket), 4, [KEYS[15], KEYS[30], KEYS[45]])
        assert cuts == [KEYS[15], KEYS[30], KEYS[45]]
        keys = [
            one.name
            for after, upto in zip(["", *cuts], [*cuts, None], strict=True)
            for page in pages_in(bucket, ROOT, KeyRange(after, upto))
            for one in page
        ]
    assert keys == [ROOT + key for key in sorted(KEYS)]


def test_a_server_that_does_not_know_where_to_begin_is_found_out() -> None:
    with listed(deaf=True) as (_, bucket):
        assert cut_points(driver_of(bucket), 4, [KEYS[15], KEYS[30], KEYS[45]]) == []
        # What it shows besides is left out all the same.
        found = [one.name for page in bucket.pages(ROOT, after=f"{ROOT}flat/040") for one in page]
        assert found == sorted(ROOT + key for key in KEYS if key > "flat/040")
