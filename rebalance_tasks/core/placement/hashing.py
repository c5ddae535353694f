"""Stable 64-bit hashes of keys and of the places that may hold them.

The first step of placement: a key becomes a number here, `crush` decides with that number. It keeps the invariant that
placement is a pure function of (key, cluster map), equal on every machine: XXH3-64 with seed 0 over UTF-8 is a fixed
specification (frozen since xxHash 0.8.0) and unsigned 64-bit arithmetic wraps the same everywhere.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.placement import xxh3_numpy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    import pyarrow as pa

U64: TypeAlias = npt.NDArray[np.uint64]
#: What a batch of keys may be: strings, an Arrow string array, or hashes made by `hash_keys` before.
KeyBatch: TypeAlias = "Sequence[str] | pa.Array | pa.ChunkedArray | npt.NDArray[np.str_] | U64"

#: Arrow keys decoded at once: bounds the Python strings alive to some tens of MB.
_ARROW_BLOCK: Final = 1 << 18
#: Python strings joined at once for the compiled kernel: their bytes stay in the second-level cache.
_JOINED_KEYS: Final = 1 << 14
MASK64: Final = (1 << 64) - 1
#: 2⁶⁴ ÷ golden ratio, odd: consecutive rounds land far apart (Knuth, TAOCP vol. 3 §6.4).
ROUND_STEP: Final = 0x9E3779B97F4A7C15
#: Multipliers and shifts of Stafford's variant 13 of the MurmurHash3 finaliser (as in SplitMix64).
MIX_MUL_1: Final = 0xBF58476D1CE4E5B9
MIX_MUL_2: Final = 0x94D049BB133111EB
MIX_SHIFT_1: Final = 30
MIX_SHIFT_2: Final = 27


def hash_key(key: str) -> int:
    """Return the key's 64-bit hash: XXH3-64, seed 0, of its UTF-8 bytes (lone surrogates pass through)."""
    return int(xxh3_64_intdigest(key.encode("utf-8", "surrogatepass")))


def hash_path(kind: str, *parts: str) -> int:
    """Return the 64-bit hash of a place in the tree, e.g. ``("rack", zone, rack)``.

    Every part is prefixed with its length, so that no two different paths share their bytes.
    """
    return int(xxh3_64_intdigest(b"".join(map(_prefixed, (kind, *parts)))))


@lru_cache(maxsize=4096)  # the names of zones and racks come again with every node
def _prefixed(part: str) -> bytes:
    encoded = part.encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(4, "big") + encoded


def hash_keys(keys: KeyBatch, kernels: ModuleType | None = None) -> U64:
    """Hash many keys at once.

    Args:
        keys: a sequence of str, a NumPy array of str, an Arrow string array (chunked or not, no nulls), or a uint64
            array, which is taken for hashes already made and returned as it is (a copy, where it is not contiguous).
        kernels: the compiled kernels (`kernels`), which hash strings of up to 240 bytes themselves.

    Returns:
        uint64 (n,), element for element equal to `hash_key`.

    Raises:
        InvalidArgument: an element is not a string, or the array is not one-dimensional.
    """
    if isinstance(keys, str):
        msg = "keys: one str was given where a sequence of keys is expected; wrap it in a list"
        raise InvalidArgument(msg)
    if isinstance(keys, np.ndarray):
        return _hash_numpy(keys, kernels)
    if type(keys).__module__.partition(".")[0] == "pyarrow":
        return _hash_arrow(keys, kernels)
    return _hash_sequence(keys, kernels)


def mix(key_hash: int, item_hash: int, round_number: int = 0) -> int:
    """Mix a key with a place: two multiplications, 64 bits; only the upper 32 bits are well mixed.

    The customary third shift of the finaliser is left out because it changes the lower half only, which nobody reads.

    Args:
        key_hash: from `hash_key`.
        item_hash: from `hash_path`.
        round_number: which attempt; a different one gives an independent value.
    """
    x = key_hash ^ ((item_hash + round_number * ROUND_STEP) & MASK64)
    x = ((x ^ (x >> MIX_SHIFT_1)) * MIX_MUL_1) & MASK64
    return ((x ^ (x >> MIX_SHIFT_2)) * MIX_MUL_2) & MASK64


def fold(hashes: U64) -> U64:
    """Return the mixer's first step, of any shape.

    It is linear over xor: that of ``key ^ item`` is ``fold(key) ^ fold(item)``, so it is done once a key and once a place
    instead of once a pair.
    """
    return hashes ^ (hashes >> np.uint64(MIX_SHIFT_1))


def mix_many(key_hashes: U64, item_hashes: U64, out: U64, scratch: U64) -> None:
    """Mix every key with every place, as `mix` does.

    Args:
        key_hashes: uint64 (n,).
        item_hashes: uint64 (m,), the round already added (`round_hashes`).
        out: uint64 (m, n), overwritten with the result: a row a place, so that what follows runs along the keys.
        scratch: uint64 (m, n), overwritten.
    """
    mix_folded(fold(key_hashes), fold(item_hashes), out, scratch)


def mix_folded(keys: U64, items: U64, out: U64, scratch: U64) -> None:
    """Do as `mix_many` does, for what is folded already."""
    np.bitwise_xor(items[:, None], keys[None, :], out=out)
    np.multiply(out, np.uint64(MIX_MUL_1), out=out)
    np.right_shift(out, np.uint64(MIX_SHIFT_2), out=scratch)
    np.bitwise_xor(out, scratch, out=out)
    np.multiply(out, np.uint64(MIX_MUL_2), out=out)


def round_hashes(item_hashes: Sequence[int], round_number: int) -> U64:
    """Return the places' hashes for a round: uint64 (m,)."""
    return np.array([(item + round_number * ROUND_STEP) & MASK64 for item in item_hashes], dtype=np.uint64)


def _hash_numpy(keys: npt.NDArray[np.generic], kernels: ModuleType | None) -> U64:
    if keys.ndim != 1:
        msg = f"keys: an array of {keys.ndim} dimensions was given where one dimension is expected"
        raise InvalidArgument(msg)
    if keys.dtype.newbyteorder("=") == np.uint64:
        # Of one kind, since compiled code is made for one: in this machine's byte order, contiguous, writable.
        return np.require(keys, dtype=np.uint64, requirements=["C", "W"])
    if keys.dtype.kind not in "UTO":
        msg = f"keys: dtype {keys.dtype} is neither strings nor uint64 hashes"
        raise InvalidArgument(msg)
    return _hash_sequence(keys.tolist(), kernels)


def _hash_sequence(keys: Sequence[str], kernels: ModuleType | None) -> U64:
    if kernels is not None:
        hashes = np.empty(len(keys), dtype=np.uint64)
        for start in range(0, len(keys), _JOINED_KEYS):
            part = slice(start, start + _JOINED_KEYS)
            hashes[part] = _hash_joined(keys[part], kernels)
        return hashes
    try:
        return np.fromiter(map(xxh3_64_intdigest, map(str.encode, keys)), dtype=np.uint64, count=len(keys))
    except UnicodeEncodeError:  # rare: a lone surrogate somewhere; the slower way takes it
        return np.fromiter(map(hash_key, keys), dtype=np.uint64, count=len(keys))
    except TypeError as exc:
        types = sorted({type(key).__name__ for key in keys} - {"str"})
        msg = f"keys: {', '.join(types)} among them; an object key is a str"
        raise InvalidArgument(msg) from exc


def _hash_joined(keys: Sequence[str], kernels: ModuleType) -> U64:
    """Hash a few thousand strings as one: joining costs a third of making Arrow of them."""
    try:
        data = np.frombuffer(("\0".join(keys) + "\0").encode(), dtype=np.uint8)
    except (TypeError, UnicodeEncodeError):  # no str among them, or a lone surrogate: the other way knows what to say
        return _hash_sequence(keys, None)
    ends = np.flatnonzero(data == 0)
    if len(ends) != len(keys):  # a key with a NUL of its own
        return _hash_sequence(keys, None)
    return _hash_buffer(data, np.concatenate(([0], ends + 1)), 1, kernels)


def _hash_arrow(keys: pa.Array | pa.ChunkedArray, kernels: ModuleType | None) -> U64:
    import pyarrow as pa  # noqa: PLC0415  loaded by whoever made the keys

    if keys.null_count:
        msg = f"keys: {keys.null_count} nulls among {len(keys)} keys; an object key is a string"
        raise InvalidArgument(msg)
    if isinstance(keys, pa.ChunkedArray):
        return np.concatenate([np.empty(0, np.uint64), *(_hash_arrow(chunk, kernels) for chunk in keys.chunks)])
    if pa.types.is_dictionary(keys.type):
        hashes: U64 = _hash_arrow(keys.dictionary, kernels)[keys.indices.to_numpy(zero_copy_only=False)]
        return hashes
    if pa.types.is_string_view(keys.type):
        return _hash_arrow(keys.cast(pa.large_string()), kernels)
    if not (pa.types.is_string(keys.type) or pa.types.is_large_string(keys.type)):
        msg = f"keys: an Arrow array of {keys.type} was given where strings are expected"
        raise InvalidArgument(msg)
    _, offset_buffer, data_buffer = keys.buffers()
    if not len(keys) or data_buffer is None:  # nothing, or nothing but empty strings
        return _hash_sequence([""] * len(keys), None)
    width = np.int64 if pa.types.is_large_string(keys.type) else np.int32
    offsets = np.frombuffer(offset_buffer, dtype=width)[keys.offset : keys.offset + len(keys) + 1].astype(np.int64)
    data = np.frombuffer(data_buffer, dtype=np.uint8)
    if kernels is not None:
        return _hash_buffer(data, offsets, 0, kernels)
    lengths = np.diff(offsets)
    medium = (lengths >= xxh3_numpy.SHORTEST) & (lengths <= xxh3_numpy.LONGEST)
    hashes = np.empty(len(keys), dtype=np.uint64)
    hashes[medium] = xxh3_numpy.hash_medium(data, offsets[:-1][medium], offsets[1:][medium])
    others = np.flatnonzero(~medium)
    for part in np.array_split(others, len(others) // _ARROW_BLOCK + 1):
        # As bytes, which spares decoding and encoding; slicing the buffer key by key takes three times as long.
        texts = keys.take(pa.array(part)).cast(pa.large_binary()).to_numpy(zero_copy_only=False).tolist()
        hashes[part] = np.fromiter(map(xxh3_64_intdigest, texts), np.uint64, len(texts))
    return hashes


def _hash_buffer(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], gap: int, kernels: ModuleType) -> U64:
    """Hash the strings ``data[offsets[k] : offsets[k + 1] − gap]``."""
    data.setflags(write=False)
    hashes = np.empty(len(offsets) - 1, dtype=np.uint64)
    kernels.hash_many(data, offsets, gap, hashes)
    for k in np.flatnonzero(np.diff(offsets) - gap > kernels.LONGEST_KEY).tolist():
        hashes[k] = xxh3_64_intdigest(data[offsets[k] : offsets[k + 1] - gap].data)
    return hashes
