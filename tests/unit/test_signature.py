"""A webhook's signature holds for its body, its secret and its time, and for nothing else."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.signature import TOLERANCE_S, is_signed, sign

TIMES: Final = st.integers(0, 10**11)


@given(st.text(min_size=1), st.binary(), TIMES)
def test_what_is_signed_is_recognised_within_the_tolerance_and_not_beyond(secret: str, body: bytes, at_s: int) -> None:
    header = sign(secret, body, at_s=at_s)
    for late in (-TOLERANCE_S, 0, TOLERANCE_S):
        assert is_signed(header, secret, body, now_s=at_s + late)
    for late in (-TOLERANCE_S - 1, TOLERANCE_S + 1):
        assert not is_signed(header, secret, body, now_s=at_s + late)


@given(st.text(min_size=1), st.binary(), TIMES, st.text(min_size=1), st.binary(), TIMES)
def test_another_secret_body_or_time_is_refused(s1: str, b1: bytes, t1: int, s2: str, b2: bytes, t2: int) -> None:
    header = sign(s1, b1, at_s=t1)
    assert is_signed(header, s2, b1, now_s=t1) == (s1 == s2)
    assert is_signed(header, s1, b2, now_s=t1) == (b1 == b2)
    moved = header.replace(f"t={t1},", f"t={t2},")
    assert is_signed(moved, s1, b1, now_s=t2) == (t1 == t2)


@given(st.text())
def test_any_other_text_is_refused(header: str) -> None:
    assert not is_signed(header, "secret", b"", now_s=0)


def test_the_scheme_is_the_one_that_the_docs_describe() -> None:
    expected = hmac.new(b"s", b'1700000000.{"a":1}', hashlib.sha256).hexdigest()
    assert sign("s", b'{"a":1}', at_s=1_700_000_000) == f"t=1700000000,v1={expected}"
