"""SFTP's packets: what is built is what asyncssh's own client would send, and what arrives is cut right, however it arrives."""

from __future__ import annotations

import struct

import asyncssh
import pytest
from asyncssh.packet import String, UInt32, UInt64
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.drivers.base import ObjectMetadata
from rebalance_tasks.drivers.sftp.packets import (
    MOST_BYTES,
    PIECE_BYTES,
    Answer,
    Answers,
    Dialect,
    Garbled,
    extensions_of,
    hello,
    is_hello,
    request,
)

METADATA = ObjectMetadata(mode=0o640, mtime_ns=1_700_000_000_123_456_789, atime_ns=1_600_000_000_000_000_001)
WRITE, READ, OPEN, RENAME, LINK, EXTENDED = 6, 5, 3, 18, 21, 200


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 255), st.binary(max_size=200)), max_size=20),
    st.integers(1, 50),
)
def test_answers_are_the_same_however_the_bytes_arrive(packets: list[tuple[int, int, bytes]], piece: int) -> None:
    stream = b"".join(request(number, kind, body) for number, kind, body in packets)
    answers = Answers()
    found = [one for at in range(0, len(stream), piece) for one in answers.feed(stream[at : at + piece])]
    assert found == [(number, Answer(kind, body)) for number, kind, body in packets]


@pytest.mark.parametrize("length", [0, 4, MOST_BYTES + 1, 2**32 - 1])
def test_a_packet_without_a_head_or_longer_than_any_is_no_answer(length: int) -> None:
    with pytest.raises(Garbled, match=str(length)):
        Answers().feed(struct.pack(">IBI", length, 101, 1))


@given(st.binary(max_size=40), st.integers(1, 255), st.sampled_from([3, 4, 5, 6]))
def test_no_body_of_an_answer_breaks_whoever_reads_it(body: bytes, kind: int, version: int) -> None:
    answer = Answer(kind, body)
    assert answer.ok == (kind == 101 and body[:4] == bytes(4))
    assert answer.handle is None or kind == 102
    assert answer.data is None or kind == 103
    assert answer.attrs(version) is None or kind == 105
    list(extensions_of(body))


@pytest.mark.parametrize("version", [3, 4, 5, 6])
def test_attributes_are_read_as_they_are_set(version: int) -> None:
    kind, body = Dialect(version, {}).set_attrs(b"h", METADATA)
    assert (kind, body[:5]) == (10, String(b"h"))
    found = Answer(105, body[5:]).attrs(version)
    assert found is not None
    assert (found.permissions, found.mtime, found.atime) == (0o640, 1_700_000_000, 1_600_000_000)
    assert (found.mtime_ns, found.atime_ns) == ((None, None) if version == 3 else (123_456_789, 1))


def test_requests_are_those_of_the_protocols_version() -> None:
    old, new = Dialect(3, {b"hardlink@openssh.com": b"1", b"fsync@openssh.com": b"1"}), Dialect(6, {})
    assert (old.syncs, old.links, new.syncs, new.links, Dialect(3, {}).links) == (True, True, False, True, False)
    assert old.open_new(b"/p") == (OPEN, String(b"/p") + UInt32(0x1B) + UInt32(0))
    assert new.open_new(b"/p") == (OPEN, String(b"/p") + UInt32(0x183) + UInt32(1) + asyncssh.SFTPAttrs().encode(6))
    assert old.open_old(b"/p") == (OPEN, String(b"/p") + UInt32(0x01) + UInt32(0))
    assert new.open_old(b"/p") == (OPEN, String(b"/p") + UInt32(0x81) + UInt32(2) + asyncssh.SFTPAttrs().encode(6))
    assert old.writes(b"h", b"xy") == [(WRITE, String(b"h") + UInt64(0) + String(b"xy"))]
    assert old.reads(b"h", 3) == [(READ, String(b"h") + UInt64(0) + UInt32(4))]
    assert old.rename(b"a", b"b") == (RENAME, String(b"a") + String(b"b"))
    assert new.rename(b"a", b"b") == (RENAME, String(b"a") + String(b"b") + UInt32(0))
    assert old.link(b"a", b"b") == (EXTENDED, String(b"hardlink@openssh.com") + String(b"a") + String(b"b"))
    assert new.link(b"a", b"b") == (LINK, String(b"b") + String(b"a") + b"\0")


@given(st.integers(1, 4 * PIECE_BYTES + 3))
def test_a_file_is_written_and_read_in_pieces_that_join_to_it_and_a_byte_more_is_asked_for(size_bytes: int) -> None:
    data = bytes(range(256)) * (size_bytes // 256 + 1)
    written = bytearray(size_bytes)
    read: list[int] = []
    for _, body in Dialect.writes(b"h", data[:size_bytes]):
        at, length = struct.unpack_from(">QI", body, 5)
        written[at : at + length] = body[17:]
        assert len(body[17:]) == length <= PIECE_BYTES
    for _, body in Dialect.reads(b"h", size_bytes):
        at, length = struct.unpack_from(">QI", body, 5)
        read += range(at, at + length)
        assert length <= PIECE_BYTES + 1
    assert written == data[:size_bytes]
    assert read == list(range(size_bytes + 1))


def test_a_servers_hello_tells_its_version_and_its_extensions() -> None:
    said = struct.pack(">BI", 2, 3) + String(b"fsync@openssh.com") + String(b"1") + String(b"x") + String(b"")
    [(version, answer)] = Answers().feed(UInt32(len(said)) + said)
    assert (version, is_hello(answer)) == (3, True)
    assert dict(extensions_of(answer.body)) == {b"fsync@openssh.com": b"1", b"x": b""}
    assert hello(6) == UInt32(5) + b"\x01" + UInt32(6)
