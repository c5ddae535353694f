"""XXH3-64 (seed 0) of many strings of 17 to 128 bytes in NumPy, from Arrow's buffers: what keys mostly are.

`hashing` uses it where numba is not: making Python bytes of Arrow's strings, so that xxhash can take them one by one, takes
longer than hashing them here. Source: the xxHash fast digest algorithm specification, "XXH3 Algorithm", 17 to 128 bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from rebalance_tasks.core.placement.hashing import U64

SHORTEST: Final = 17
LONGEST: Final = 128
#: The first sixteen words of XXH3's default secret.
_SECRET: Final = (
    0xBE4BA423396CFEB8,
    0x1CAD21F72C81017C,
    0xDB979083E96DD4DE,
    0x1F67B3B7A4A44072,
    0x78E5C0CC4EE679CB,
    0x2172FFCC7DD05A82,
    0x8E2443F7744608B8,
    0x4C263A81E69035E0,
    0xCB00C391BB52283C,
    0xA32E531B8B65D088,
    0x4EF90DA297486471,
    0xD8ACDEA946EF1938,
    0x3F349CE33F76FAA8,
    0x1D4F0BC7C7BBDCF9,
    0x3159B4CD4BE0518A,
    0x647378D9C97E9FC8,
)
_PRIME64_1: Final = np.uint64(0x9E3779B185EBCA87)
_PRIME_MX1: Final = np.uint64(0x165667919E3779F9)
_LOWER: Final = np.uint64(2**32 - 1)
_HALF: Final = np.uint64(32)
#: Strings hashed at once: a dozen such arrays stay in the second-level cache.
_BLOCK: Final = 1 << 13


def hash_medium(data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> U64:
    """Hash the strings ``data[starts[k] : ends[k]]``, each of `SHORTEST` to `LONGEST` bytes: uint64 (n,)."""
    # A word at every byte; what is taken out of it comes aligned.
    words = np.ndarray((max(0, len(data) - 7),), dtype="<u8", buffer=data, strides=(1,))
    hashes = np.empty(len(starts), dtype=np.uint64)
    for begin in range(0, len(starts), _BLOCK):
        part = slice(begin, begin + _BLOCK)
        hashes[part] = _hash_block(words, starts[part], ends[part])
    return hashes


def _hash_block(words: U64, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> U64:
    lengths = ends - starts
    total: U64 = lengths.astype(np.uint64) * _PRIME64_1
    for depth in range(4):  # 16 bytes from the front and 16 from the back, further in for each 32 bytes
        longer = np.flatnonzero(lengths > 32 * depth) if depth else slice(None)
        front, back = starts[longer] + 16 * depth, ends[longer] - 16 * (depth + 1)
        total[longer] += _mix16(words, front, 4 * depth) + _mix16(words, back, 4 * depth + 2)
    total = (total ^ (total >> np.uint64(37))) * _PRIME_MX1
    return total ^ (total >> _HALF)


def _mix16(words: U64, at: npt.NDArray[np.int64], secret: int) -> U64:
    """Multiply two words to 128 bits and fold the product."""
    one = words[at] ^ np.uint64(_SECRET[secret])
    other = words[at + 8] ^ np.uint64(_SECRET[secret + 1])
    one_low, one_high, other_low, other_high = one & _LOWER, one >> _HALF, other & _LOWER, other >> _HALF
    middle = one_high * other_low + ((one_low * other_low) >> _HALF)
    lower = one_low * other_high + (middle & _LOWER)
    high: U64 = one_high * other_high + (middle >> _HALF) + (lower >> _HALF)
    return high ^ (one * other)
