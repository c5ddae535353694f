"""Signatures are those of AWS' published examples, and S3's answers are read as they are meant."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from rebalance_tasks.drivers.base import ObjectMetadata
from rebalance_tasks.drivers.object_stores.bucket import Stored
from rebalance_tasks.drivers.object_stores.files import attributes_of, metadata_of, mtime_ns_of, part_bytes
from rebalance_tasks.drivers.s3.signing import EMPTY_SHA256, Credentials, query_text, quoted, signed_headers

#: AWS, "Signature Calculations for the Authorization Header", Amazon S3 API Reference: its keys, its time, its signatures.
EXAMPLE = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
AT = datetime(2013, 5, 24, tzinfo=UTC)
HOST = {"host": "examplebucket.s3.amazonaws.com"}
WELCOME = hashlib.sha256(b"Welcome to Amazon S3.").hexdigest()


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "payload", "signature"),
    [
        (
            "GET",
            "/test.txt",
            {},
            {"range": "bytes=0-9"},
            EMPTY_SHA256,
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "PUT",
            "/" + quoted("test$file.text"),
            {},
            {"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
            WELCOME,
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (
            "GET",
            "/",
            {"lifecycle": ""},
            {},
            EMPTY_SHA256,
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            "GET",
            "/",
            {"prefix": "J", "max-keys": "2"},
            {},
            EMPTY_SHA256,
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
)
def test_a_request_is_signed_as_in_aws_examples(
    method: str, path: str, query: dict[str, str], headers: dict[str, str], payload: str, signature: str
) -> None:
    signed = signed_headers(
        method,
        path,
        query_text(query),
        {**HOST, **headers},
        payload_sha256=payload,
        credentials=EXAMPLE,
        region="us-east-1",
        now=AT,
    )
    assert signed["authorization"].endswith(f"Signature={signature}")


def test_a_session_token_is_signed_too() -> None:
    signed = signed_headers(
        "GET",
        "/",
        "",
        HOST,
        payload_sha256=EMPTY_SHA256,
        credentials=Credentials("a", "b", "the-token"),
        region="us-east-1",
        now=AT,
    )
    assert signed["x-amz-security-token"] == "the-token"
    assert "x-amz-security-token" in signed["authorization"]


@pytest.mark.parametrize("mtime_ns", [0, 1, 10**9 - 1, 1_234_567_890_123_456_789])
@pytest.mark.parametrize("mode", [None, 0, 0o644, 0o7777])
def test_what_a_store_has_no_field_for_travels_through_it_and_back(mtime_ns: int, mode: int | None) -> None:
    given = ObjectMetadata(mode=mode, mtime_ns=mtime_ns, xattrs={"user.rebalance.content-type": b"text/x"})
    stored = Stored("k", 1, "e", 7, attributes_of(given))
    back = metadata_of(stored)
    assert (back.mode, back.mtime_ns, back.xattrs) == (given.mode, given.mtime_ns, given.xattrs)


@pytest.mark.parametrize("text", ["", "soon", "-1", "1.x", "1e5", "1.2.3"])
def test_a_time_that_somebody_else_wrote_and_that_is_none_is_not_believed(text: str) -> None:
    assert mtime_ns_of(Stored("k", 1, "e", 7, {"meta:mtime": text})) == 7


def test_ten_thousand_parts_hold_a_terabyte() -> None:
    assert sum(part_bytes(number) for number in range(1, 10_001)) > 10**12 * 0.99
