"""Codes as a store ranks by them: a document's ±1 planes times its scale, so that inner products are exact.

Plane t of a query counts 2^(bits−1−t) times, so ⟨document, query⟩ = scale · ⟨V, query⟩. A store that keeps one bit of
each coordinate in memory keeps the code, all planes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.codes.binarizer import Binarizer, Codes, Scale
from pipeline.codes.packing import to_values, unpack

LAYOUT = "planes"
"""What a collection's contract calls this layout."""

_UNIT_BITS = 128  # Qdrant's binary vectors are whole numbers of these
_LINKS = 16  # Qdrant's default
_ID_BYTES = 44  # an id, its place among the others, and the version of its point


@dataclass(frozen=True)
class CodesSpec:
    """What a store and an encoder's version need to know of a binarizer: bits over dims, and its fingerprint."""

    fingerprint: str
    bits: int
    dims: int
    scale: Scale

    @classmethod
    def of(cls, binarizer: Binarizer) -> CodesSpec:
        """What is to be known of this binarizer."""
        spec = binarizer.spec
        return cls(binarizer.fingerprint, spec.bits, spec.dims, spec.scale)

    @property
    def width(self) -> int:
        """How many numbers a document has in a store."""
        return self.bits * self.dims

    @property
    def bytes(self) -> int:
        """The size of a code."""
        return self.width // 8


def to_rows(codes: Codes, bits: int) -> NDArray[np.float32]:
    """Documents as a store takes them, float32[n, bits · dims]: ±scale. A scale of NaN makes a row of NaN."""
    planes = unpack(codes.packed, bits).reshape(len(codes.packed), -1)
    scale = codes.scale[:, None]
    rows: NDArray[np.float32] = np.where(planes, scale, -scale)
    return rows


def query_rows(
    binarizer: Binarizer, queries: NDArray[np.float32], coded: bool = False
) -> NDArray[np.float32]:
    """float32[n, bits · dims] of float queries [n, input_dims]: projected, or with `coded` as their codes' values V."""
    bits = binarizer.spec.bits
    if coded:
        values = to_values(unpack(binarizer.encode(queries).packed, bits)).astype(np.float32)
    else:
        values = binarizer.project(queries)
    weights = 2.0 ** np.arange(bits - 1, -1, -1, dtype=np.float32)
    rows: NDArray[np.float32] = (weights[:, None] * values[:, None, :]).reshape(len(values), -1)
    return rows


class Room(NamedTuple):
    """Bytes that a document takes in a store: in memory, and on disk."""

    ram: int
    disk: int


def codes_room(codes: CodesSpec, kept_dims: int, points: int, links: int | None = None) -> Room:
    """What each of `points` takes; vectors of `kept_dims` (0: none) are kept in 16 bits, the graph has `links` a point.

    In memory a bit a coordinate, in units of 128, the graph, and the point's id; on disk the same, the planes as
    float32, and the vectors. Payloads and their indexes are not counted.
    """
    bits = -(-codes.width // _UNIT_BITS) * _UNIT_BITS
    number = max(points - 1, 1).bit_length()  # a link is a point's number, in as many bits as the largest has
    graph = 2 * (_LINKS if links is None else links) * number // 8
    ram = bits // 8 + graph + _ID_BYTES
    return Room(ram, ram + 4 * codes.width + 2 * kept_dims)
