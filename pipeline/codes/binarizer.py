"""The recurrent binarizer (BEBR): a vector becomes u+1 bits a dimension, each plane coding what the ones before left.

    b_0 = s(W(x));  f = B_i(code) / |B_i(code)|;  r = s(R_i(x − f));  code += 2^−(i+1) r      s(0) = −1

Codes are a pure function of the float vectors, the same on every machine: weights and inputs lie on a grid of powers
of two, coarse enough that every sum of products is exact in float64, so no order of additions, batch size or library
changes a bit. What the grid takes away (2^−20 of the largest coordinate) is far below what one bit keeps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.codes.packing import MOST_BITS, pack, to_values
from pipeline.errors import EncoderError

GRID_BITS = 20
GRID = 2.0**GRID_BITS  # inputs and activations are multiples of 1/GRID
LEAST = 2.0**-60  # a vector smaller than this is taken for one of this size
_MANTISSA = 52  # bits of a float64 that sums may fill
_WEIGHT_BITS = 24  # a weight is stored as float32
_MOST_INPUT_DIMS = 2 ** (_MANTISSA - 2 * GRID_BITS)  # their squares are summed
_BLOCK_ROWS = 4096

Scale = Literal["norm", "projection"]


@dataclass(frozen=True)
class BinarizerSpec:
    """What a binarizer is, without its weights.

    method: how it was made: "learned", "compatible", "sign", "rotation", "itq" or "pca".
    encoder_version: whose vectors it takes; "" where that is not known.
    input_dims, dims: width of a vector, and of each plane (a multiple of 8); bits: planes, 1 to 4.
    scale: a document's float factor: 1/|V| as in the paper, or |y|²/⟨V, y⟩ with y its projection, as in RaBitQ.
    compatible_with: the fingerprint of the older codes beside which these rank; "" where there are none.
    """

    method: str
    encoder_version: str
    input_dims: int
    dims: int
    bits: int
    scale: Scale
    compatible_with: str = ""

    def __post_init__(self) -> None:
        if (
            not 1 <= self.bits <= MOST_BITS
            or self.dims < 8
            or self.dims % 8
            or not (1 <= self.input_dims <= _MOST_INPUT_DIMS)
        ):
            raise EncoderError(
                f"codes of {self.bits} bits over {self.dims} dimensions from vectors of {self.input_dims}",
                f"1 to {MOST_BITS} bits, a multiple of 8 dimensions, vectors of at most {_MOST_INPUT_DIMS}",
                "Choose another --bits or --dims",
            )

    @property
    def bytes(self) -> int:
        """The size of a code, without its scale."""
        return self.bits * self.dims // 8

    def as_dict(self) -> dict[str, Any]:
        """The spec as JSON values; what codes rank beside is said by those alone that do, so others' hash stays."""
        said = asdict(self)
        return said if self.compatible_with else {key: said[key] for key in said if key != "compatible_with"}


class Layer(NamedTuple):
    """A linear layer on the grid: weight float32[out, in], bias float32[out]."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


Block = tuple[Layer, ...]
"""Linear layers with ReLU between them, batch normalisation folded in."""


class Codes(NamedTuple):
    """Packed codes uint8[n, bytes] and each document's scale float32[n]."""

    packed: NDArray[np.uint8]
    scale: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Binarizer:
    """A trained or constructed binarizer; weights as `on_grid` makes them.

    first: W, input_dims → dims. rebuild, refine: B_i (dims → input_dims) and R_i (input_dims → dims), one a plane
    after the first. query: float32[dims, input_dims], what takes a float query to where codes are; mean:
    float32[input_dims], what documents are measured from (rank-neutral for a query).
    """

    spec: BinarizerSpec
    first: Block
    rebuild: tuple[Block, ...]
    refine: tuple[Block, ...]
    query: NDArray[np.float32]
    mean: NDArray[np.float32]

    def __post_init__(self) -> None:
        wide, narrow = self.spec.dims, self.spec.input_dims
        shapes = [_shape(block) for block in (self.first, *self.refine, *self.rebuild)]
        later = self.spec.bits - 1
        expected = [(narrow, wide)] * (1 + later) + [(wide, narrow)] * later
        if shapes != expected or self.query.shape != (wide, narrow) or self.mean.shape != (narrow,):
            raise EncoderError(
                f"a binarizer whose blocks go {shapes}, with a query projection {self.query.shape}",
                f"Blocks that go {expected} for {self.spec}",
                "Train the codes again",
            )

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits: SHA-256 of the spec and every weight; part of the version of the encoder before it."""
        digest = hashlib.sha256(json.dumps(self.spec.as_dict(), sort_keys=True).encode())
        for name, array in sorted(self.tensors().items()):
            digest.update(f"{name}{array.shape}".encode() + np.ascontiguousarray(array, "<f4").tobytes())
        return digest.hexdigest()

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """All arrays by name: first.0.weight, rebuild.1.0.bias, …, query, mean."""
        blocks = {"first": self.first}
        blocks |= {f"rebuild.{n}": block for n, block in enumerate(self.rebuild)}
        blocks |= {f"refine.{n}": block for n, block in enumerate(self.refine)}
        named = {
            f"{name}.{n}.{part}": array
            for name, block in blocks.items()
            for n, layer in enumerate(block)
            for part, array in layer._asdict().items()
        }
        return {**named, "query": self.query, "mean": self.mean}

    def encode(self, vectors: NDArray[np.floating]) -> Codes:
        """Code float[n, input_dims] vectors of any length; row i depends on vector i alone.

        Raises EncoderError for another width, NaN or infinite values.
        """
        self._check(vectors)
        packed = np.empty((len(vectors), self.spec.bytes), np.uint8)
        scale = np.empty(len(vectors), np.float32)
        for at in range(0, len(vectors), _BLOCK_ROWS):
            unit = to_unit(np.asarray(vectors[at : at + _BLOCK_ROWS], np.float64))
            planes = self.planes(unit)
            packed[at : at + len(unit)] = pack(planes)
            scale[at : at + len(unit)] = self._scale(planes, unit)
        return Codes(packed, scale)

    def planes(self, unit: NDArray[np.float64]) -> NDArray[np.bool_]:
        """bool[n, bits, dims], True for +1, of vectors float64[n, input_dims] that `to_unit` gave."""
        planes = [apply(self.first, unit) > 0]
        code = np.where(planes[0], 1.0, -1.0)
        for n, (rebuild, refine) in enumerate(zip(self.rebuild, self.refine, strict=True), 1):
            planes.append(apply(refine, unit - to_unit(apply(rebuild, code))) > 0)
            code += np.where(planes[-1], 2.0**-n, -(2.0**-n))
        return np.stack(planes, axis=1)

    def project(self, queries: NDArray[np.floating]) -> NDArray[np.float32]:
        """float32[n, dims]: queries as floats where codes are; ⟨project(q), V⟩ · scale ranks documents."""
        self._check(queries)
        projected: NDArray[np.float32] = np.asarray(queries, np.float32) @ self.query.T
        return projected

    def _scale(self, planes: NDArray[np.bool_], unit: NDArray[np.float64]) -> NDArray[np.float32]:
        values = to_values(planes).astype(np.float32)
        scale: NDArray[np.float32]
        if self.spec.scale == "norm":
            scale = 1 / np.linalg.norm(values, axis=1)
            return scale
        target = (unit.astype(np.float32) - self.mean) @ self.query.T
        products = values * target
        # A code at a right angle to its vector says nothing about it: no division by almost nothing.
        along = np.maximum(products.sum(axis=1), LEAST + 0.01 * np.abs(products).sum(axis=1))
        scale = (target * target).sum(axis=1) / along
        return scale

    def _check(self, vectors: NDArray[np.floating]) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self.spec.input_dims:
            raise EncoderError(
                f"vectors of shape {vectors.shape}",
                f"[n, {self.spec.input_dims}], what the binarizer was made for",
                "Use the encoder that the codes were trained with",
            )
        if not np.isfinite(vectors).all():
            bad = int((~np.isfinite(vectors).all(axis=1)).sum())
            raise EncoderError(
                f"{bad} of {len(vectors)} vectors with NaN or infinite values",
                "Finite numbers",
                "Leave them out",
            )


def to_unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale rows to length 1, on the grid; each step is exact or correctly rounded, so it is the same everywhere."""
    largest = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), LEAST)
    rows = np.rint(vectors / largest * GRID) / GRID
    length = np.sqrt(np.maximum((rows * rows).sum(axis=1, keepdims=True), LEAST))
    unit: NDArray[np.float64] = np.rint(rows / length * GRID) / GRID
    return unit


def apply(block: Block, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a block makes of float64[n, in] on the grid: float64[n, out], exactly."""
    for layer in block[:-1]:
        values = np.maximum(values @ layer.weight.T.astype(np.float64) + layer.bias, 0.0)
        values = np.rint(values * GRID) / GRID
    return values @ block[-1].weight.T.astype(np.float64) + block[-1].bias


def on_grid(layers: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]], largest: float) -> Block:
    """Round the weights [out, in] and biases [out] of a block to where its sums are exact.

    `largest`: the greatest input coordinate there can be. Raises EncoderError for weights that are not finite, or so
    large that nothing of them would be left.
    """
    block = []
    for weight, bias in layers:
        wide, shift = np.asarray(weight, np.float64), np.asarray(bias, np.float64)
        reach = float((np.abs(wide).sum(axis=1) * largest + np.abs(shift)).max())
        widest = max(float(np.abs(wide).max()), float(np.abs(shift).max()), 2.0**-8)
        bits = min(
            _MANTISSA - GRID_BITS - math.ceil(math.log2(max(reach, 1.0))) if math.isfinite(reach) else 0,
            _WEIGHT_BITS - math.ceil(math.log2(widest)) if math.isfinite(widest) else 0,
        )
        if bits < 8:
            raise EncoderError(
                f"a binarizer with weights up to {widest:.3g}, sums up to {reach:.3g}",
                "Finite weights of moderate size",
                "Train again with a lower learning rate",
            )
        step = 2.0 ** min(bits, GRID_BITS)
        block.append(Layer(*(np.asarray(np.rint(part * step) / step, np.float32) for part in (wide, shift))))
        largest = reach
    return tuple(block)


def _shape(block: Block) -> tuple[int, int]:
    for before, after in pairwise(block):
        if before.weight.shape[0] != after.weight.shape[1]:
            return before.weight.shape[0], after.weight.shape[1]
    return block[0].weight.shape[1], block[-1].weight.shape[0]
