"""Codes as bytes and as integers: packing, unpacking, and exact integer scores (symmetric distance calculation).

A code of `bits` planes over `dims` dimensions is plane-major, most significant plane first, eight dimensions a byte,
the first in the highest bit. Read as numbers, a dimension's planes b_0 b_1 … (0 for −1) are the digits of an unsigned
c, and its value is the odd integer V = 2c − L, L = 2^bits − 1: 2^(bits−1) times the paper's Σ b_t 2^−t.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError

MOST_BITS = 4
_EXACT = 1 << 24  # float32 holds every integer up to here


def pack(planes: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pack planes bool[n, bits, dims] into uint8[n, bits · dims / 8]; dims is a multiple of 8."""
    n, bits, dims = planes.shape
    return np.packbits(planes, axis=2).reshape(n, bits * dims // 8)


def unpack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.bool_]:
    """Return the planes bool[n, bits, dims] of packed codes uint8[n, bytes]; bytes is a multiple of `bits`."""
    n, size = codes.shape
    if not 1 <= bits <= MOST_BITS or size % bits:
        raise UsageError(
            f"codes of {size} bytes, to be read as {bits} bits a dimension",
            f"1 to {MOST_BITS} bits, and as many whole bytes for each of them",
            "Read codes with the binarizer that made them",
        )
    return np.unpackbits(codes.reshape(n, bits, size // bits), axis=2).astype(np.bool_)


def to_values(planes: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Return the integer values int8[n, dims] of planes bool[n, bits, dims]: odd, at most 2^bits − 1 in size."""
    bits = planes.shape[1]
    weights = (1 << np.arange(bits - 1, -1, -1)).astype(np.int8)
    digits: NDArray[np.int8] = np.einsum("t,ntk->nk", weights, planes.astype(np.int8))
    return 2 * digits - np.int8((1 << bits) - 1)


def from_values(values: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    """Pack integer values [n, dims] as `to_values` gives them: uint8[n, bits · dims / 8]."""
    digits = (values.astype(np.int16) + (1 << bits) - 1) // 2
    shifts = np.arange(bits - 1, -1, -1, dtype=np.int16)
    return pack(((digits[:, None, :] >> shifts[:, None]) & 1).astype(np.bool_))


def inner_products(queries: NDArray[np.int8], documents: NDArray[np.int8]) -> NDArray[np.int32]:
    """Compute ⟨V_q, V_d⟩ exactly, int32[queries, documents], from values int8[·, dims].

    It runs as a float32 product, for which there are fast kernels: all partial sums are integers below 2^24 for up
    to 74,565 dimensions of 4 bits, so none is rounded. Raises UsageError beyond.
    """
    dims = queries.shape[1]
    largest = max((int(np.abs(side).max(initial=0)) for side in (queries, documents)), default=0)
    if documents.shape[1] != dims or dims * largest**2 >= _EXACT:
        raise UsageError(
            f"values of {dims} and {documents.shape[1]} dimensions, up to {largest}",
            "Codes of one binarizer, few enough for exact sums in float32",
            "Compare codes that the same binarizer made",
        )
    return (queries.astype(np.float32) @ documents.astype(np.float32).T).astype(np.int32)
