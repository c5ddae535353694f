"""Objects that testify: each names itself, its length and every append, so that a torn or swapped one betrays itself.

``[o000017:00005000]`` then 5000 bytes that follow from the name, then the tokens ``{0000000042}`` of those who appended.
The independent checker and the strangers of the chaos rounds share this; it imports none of the package.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

HEADER: Final = re.compile(rb"\[(o\d{6}):(\d{8})\]")
TOKEN: Final = re.compile(rb"\{(\d{10})\}")
TOKEN_BYTES: Final = 12


@dataclass(frozen=True)
class Content:
    """What a file says of itself: which object it is (``""``: an empty file), and who appended to it."""

    oid: str
    tokens: tuple[int, ...]


def made(oid: str, size: int) -> bytes:
    """The bytes of a new object; size 0 makes an empty file, which cannot name itself."""
    if size == 0:
        return b""
    return b"[%s:%08d]" % (oid.encode(), size) + hashlib.shake_128(oid.encode()).digest(size)


def token(number: int) -> bytes:
    """What a stranger appends."""
    return b"{%010d}" % number


def read(content: bytes, *, growing: bool = False) -> Content | None:
    """Take a file's bytes apart; ``None`` when they are not one whole object.

    Args:
        content: all of it.
        growing: somebody may be appending at this moment, so the last token may be cut short.
    """
    if not content:
        return Content("", ())
    header = HEADER.match(content)
    if header is None:
        return None
    oid, size = header[1].decode(), int(header[2])
    end = header.end() + size
    if content[:end] != made(oid, size):
        return None
    tokens: list[int] = []
    while end < len(content):
        found = TOKEN.match(content, end)
        if found is None:
            return Content(oid, tuple(tokens)) if growing and len(content) - end < TOKEN_BYTES else None
        tokens.append(int(found[1]))
        end = found.end()
    return Content(oid, tuple(tokens))
