"""The rule for object keys, without any store."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.errors import InvalidKey
from rebalance_tasks.core.key_columns import are_valid
from rebalance_tasks.core.keys import MAX_KEY_BYTES, validate_key
from rebalance_tasks.drivers.local.errors import validate_local_key
from tests.unit.drivers.conformance import ODD_KEYS, REFUSED_KEYS


@pytest.mark.parametrize("key", ODD_KEYS)
def test_an_odd_key_is_returned_unchanged(key: str) -> None:
    assert validate_key(key) == key
    assert validate_local_key(key) == key


@pytest.mark.parametrize("key", REFUSED_KEYS)
def test_a_key_that_cannot_be_confined_is_refused_with_the_key_and_the_reason(key: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        validate_key(key)
    assert caught.value.key == key
    assert caught.value.why in str(caught.value)
    str(caught.value).encode("ascii")


def test_a_key_of_exactly_the_longest_length_is_fine_and_one_byte_more_is_not() -> None:
    validate_key("é" * (MAX_KEY_BYTES // 2))
    with pytest.raises(InvalidKey, match="1026 bytes"):
        validate_key("é" * (MAX_KEY_BYTES // 2 + 1))


def test_a_component_longer_than_a_file_name_is_refused_by_the_local_driver_only() -> None:
    key = "a/" + "é" * 128
    assert validate_key(key) == key
    with pytest.raises(InvalidKey, match="256 bytes"):
        validate_local_key(key)
    validate_local_key("a/" + "é" * 127 + "x")


@given(st.text(max_size=40))
def test_an_accepted_key_never_leaves_its_root_and_never_enters_our_folder(key: str) -> None:
    try:
        validate_key(key)
    except InvalidKey:
        return
    parts = key.split("/")
    assert "/".join(parts) == key
    assert not {"", ".", ".."} & set(parts)
    assert "\0" not in key
    assert parts[0].casefold() != ".rebalance"


@given(st.lists(st.sampled_from(["a", ".", "..", "", ".rebalance", "b\n"]), min_size=1, max_size=5).map("/".join))
def test_paths_built_of_dangerous_parts_are_accepted_only_when_harmless(key: str) -> None:
    parts = key.split("/")
    harmless = parts[0] != ".rebalance" and not {"", ".", ".."} & set(parts)
    if harmless:
        assert validate_key(key) == key
    else:
        with pytest.raises(InvalidKey):
            validate_key(key)


def is_valid(key: str) -> bool:
    try:
        validate_key(key)
    except InvalidKey:
        return False
    return True


@given(
    st.lists(
        st.one_of(
            st.sampled_from([key for key in [*ODD_KEYS, *REFUSED_KEYS] if key != "lone\udcff"]),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
            st.text("./ar\0\n\u200dé", max_size=8),
        ),
        max_size=12,
    )
)
def test_many_keys_at_once_are_judged_as_each_by_itself(keys: list[str]) -> None:
    assert are_valid(pa.array(keys, pa.large_string())).tolist() == [is_valid(key) for key in keys]
