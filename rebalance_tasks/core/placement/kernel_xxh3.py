"""XXH3-64 (seed 0) of many strings of up to 240 bytes, compiled: what xxhash gives one by one, from Arrow's buffers.

Source: the xxHash fast digest algorithm specification, "XXH3 Algorithm".
"""
# ruff: noqa: PLR2004  the numbers are those of the specification

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rebalance_tasks.core.placement.compiled import Kernel, inlined

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

if sys.byteorder != "little":
    msg = "the compiled kernels read keys as little-endian words"
    raise ImportError(msg)

#: The longest key that `hash_many` hashes itself, in bytes; XXH3 works differently beyond it.
LONGEST_KEY: Final = 240

#: XXH3's default secret (xxHash specification, "XXH3 Algorithm").
_SECRET: Final = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
        "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
        "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    dtype=np.uint8,
)
_WORDS: Final = _SECRET.view(np.uint64)
_LOWER: Final = np.uint64(2**32 - 1)
_U8: Final = np.uint64(8)
_U24: Final = np.uint64(24)
_U28: Final = np.uint64(28)
_U29: Final = np.uint64(29)
_U32: Final = np.uint64(32)
_U33: Final = np.uint64(33)
_U35: Final = np.uint64(35)
_U37: Final = np.uint64(37)
_U49: Final = np.uint64(49)
_U64: Final = np.uint64(64)
_PRIME64_1: Final = np.uint64(0x9E3779B185EBCA87)
_PRIME64_2: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME64_3: Final = np.uint64(0x165667B19E3779F9)
_PRIME_MX1: Final = np.uint64(0x165667919E3779F9)
_PRIME_MX2: Final = np.uint64(0x9FB21C651E98DF25)


_intrinsic: Final[Any] = intrinsic
_uint64: Final[Any] = types.uint64


def _generate_high_product(_context: object, _one: object, _other: object) -> tuple[Any, Any]:
    def generate(_context: object, builder: Any, _signature: object, arguments: Any) -> Any:  # noqa: ANN401
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(argument, wide) for argument in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return _uint64(_uint64, _uint64), generate


def _generate_word(_context: object, data: Any, _start: object) -> tuple[Any, Any]:  # noqa: ANN401  numba's protocol
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        address = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.gep(address, [arguments[1]])
        return builder.load(builder.bitcast(pointer, ir.IntType(64).as_pointer()), align=1)

    return _uint64(data, types.int64), generate


#: (one, other) → the upper 64 bits of their product: one instruction, which numba has no word for.
_high_product: Final[Callable[[np.uint64, np.uint64], np.uint64]] = _intrinsic(_generate_high_product)
#: (data, start) → the eight bytes from a position on as a number: one load, which need not be aligned.
_word: Final[Callable[[npt.NDArray[np.uint8], int], np.uint64]] = _intrinsic(_generate_word)


@inlined
def _half_word(data: npt.NDArray[np.uint8], start: int) -> np.uint64:
    """Return four bytes as a number; eight might reach beyond the end of the buffer."""
    value = np.uint64(0)
    for i in range(4):
        value |= np.uint64(data[np.uint64(start + i)]) << (_U8 * np.uint64(i))
    return value


@inlined
def _fold(one: np.uint64, other: np.uint64) -> np.uint64:
    return (one * other) ^ _high_product(one, other)


@inlined
def _avalanche(value: np.uint64) -> np.uint64:
    value = (value ^ (value >> _U37)) * _PRIME_MX1
    return value ^ (value >> _U32)


@inlined
def _avalanche_64(value: np.uint64) -> np.uint64:
    value = (value ^ (value >> _U33)) * _PRIME64_2
    value = (value ^ (value >> _U29)) * _PRIME64_3
    return value ^ (value >> _U32)


@inlined
def _rotated(value: np.uint64, by: np.uint64) -> np.uint64:
    return (value << by) | (value >> (_U64 - by))


@inlined
def _mix16(data: npt.NDArray[np.uint8], start: int, secret: np.uint64, other_secret: np.uint64) -> np.uint64:
    return _fold(_word(data, start) ^ secret, _word(data, start + 8) ^ other_secret)


@inlined
def _hash_short(data: npt.NDArray[np.uint8], start: int, length: int) -> np.uint64:
    """Up to 16 bytes."""
    size = np.uint64(length)
    if length > 8:
        low = _word(data, start) ^ _word(_SECRET, 24) ^ _word(_SECRET, 32)
        high = _word(data, start + length - 8) ^ _word(_SECRET, 40) ^ _word(_SECRET, 48)
        swapped = np.uint64(0)
        for i in range(8):
            swapped |= ((low >> (_U8 * np.uint64(i))) & np.uint64(255)) << (_U8 * np.uint64(7 - i))
        return _avalanche(size + swapped + high + _fold(low, high))
    if length >= 4:
        value = _half_word(data, start + length - 4) + (_half_word(data, start) << _U32)
        value ^= _word(_SECRET, 8) ^ _word(_SECRET, 16)
        value ^= _rotated(value, _U49) ^ _rotated(value, _U24)
        value *= _PRIME_MX2
        value ^= (value >> _U35) + size
        value *= _PRIME_MX2
        return value ^ (value >> _U28)
    if length > 0:
        value = np.uint64(data[start]) << np.uint64(16) | np.uint64(data[start + (length >> 1)]) << _U24
        value |= np.uint64(data[start + length - 1]) | size << _U8
        return _avalanche_64(value ^ (_word(_SECRET, 0) & _LOWER) ^ (_word(_SECRET, 0) >> _U32))
    return _avalanche_64(_word(_SECRET, 56) ^ _word(_SECRET, 64))


@inlined
def _hash_medium(data: npt.NDArray[np.uint8], start: int, length: int) -> np.uint64:
    """17 to 128 bytes. Without a loop: with constant places in the secret it takes a third of the time."""
    total = np.uint64(length) * _PRIME64_1
    end = start + length
    if length > 96:
        total += _mix16(data, start + 48, _WORDS[12], _WORDS[13]) + _mix16(data, end - 64, _WORDS[14], _WORDS[15])
    if length > 64:
        total += _mix16(data, start + 32, _WORDS[8], _WORDS[9]) + _mix16(data, end - 48, _WORDS[10], _WORDS[11])
    if length > 32:
        total += _mix16(data, start + 16, _WORDS[4], _WORDS[5]) + _mix16(data, end - 32, _WORDS[6], _WORDS[7])
    total += _mix16(data, start, _WORDS[0], _WORDS[1]) + _mix16(data, end - 16, _WORDS[2], _WORDS[3])
    return _avalanche(total)


@inlined
def _hash_long(data: npt.NDArray[np.uint8], start: int, length: int) -> np.uint64:
    """129 to 240 bytes."""
    total = np.uint64(length) * _PRIME64_1
    for i in range(8):
        total += _mix16(data, start + 16 * i, _WORDS[2 * i], _WORDS[2 * i + 1])
    total = _avalanche(total)
    for i in range(8, length // 16):
        secret = 16 * (i - 8) + 3
        total += _mix16(data, start + 16 * i, _word(_SECRET, secret), _word(_SECRET, secret + 8))
    total += _mix16(data, start + length - 16, _word(_SECRET, 119), _word(_SECRET, 127))
    return _avalanche(total)


def _hash_many(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], gap: int, out: npt.NDArray[np.uint64]
) -> None:
    for k in range(out.shape[0]):
        start = offsets[k]
        length = offsets[k + 1] - gap - start
        if length <= 16:
            out[k] = _hash_short(data, start, length)
        elif length <= 128:
            out[k] = _hash_medium(data, start, length)
        elif length <= LONGEST_KEY:
            out[k] = _hash_long(data, start, length)


#: Hash strings of at most `LONGEST_KEY` bytes; the entries of longer ones are left alone. Arguments: data uint8, read-only;
#: offsets int64 (n + 1,); the bytes between two strings; out uint64 (n,).
hash_many: Final = Kernel(_hash_many)
