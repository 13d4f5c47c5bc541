"""What codes are compared with, at equal bytes: codes that need no training, and Qdrant's own quantization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.codes import Binarizer, make_binarizer, untrained
from pipeline.codes.quantizers import principal, product, scalar, truncate
from pipeline.evaluation.codes import JudgedVectors, Method, Ranked, coded, restored
from pipeline.stores.quantized import QUANTIZATIONS, Quantization, rank_quantized

Vectors = NDArray[np.float32]
Sample = Callable[[JudgedVectors], Vectors]
"""The vectors that a method is fitted on, for a judged set: its own documents, or others."""

MOST_FITTED = 8000
"""Vectors that a method without training looks at."""

MOST_TURNED = 512
"""More dimensions than these take ITQ minutes; fewer of them with more bits have been better at the same bytes."""

_PIECES_FITTED = 3000  # k-means has 256 centroids a piece


def own_documents(judged: JudgedVectors) -> Vectors:
    """Fit on the documents that are searched."""
    return judged.documents


def untrained_methods(width: int, sizes: Sequence[int], sample: Sample, least: int) -> list[Method]:
    """All training-free methods for vectors of `width` that take a code of one of these sizes in bytes.

    `least`: how many vectors there are to fit on at least; methods that need more are left out.
    """

    def fitted(judged: JudgedVectors) -> Vectors:
        return sample(judged)[:MOST_FITTED]

    methods = []
    for size in sorted({*sizes}):
        for bits in (1, 2, 4):
            dims = 8 * size // bits
            if dims == width:
                methods += [_binarized(name, dims, bits, fitted) for name in ("sign", "rotation")]
            if dims <= min(width, least, MOST_TURNED):
                methods += _turned(dims, bits, fitted)
        for bits in (4, 8):
            dims = 8 * size // bits
            if dims <= min(width, least):
                methods += [_principal(dims, bits, size, fitted), _truncated(dims, bits, size, fitted)]
        if width % size == 0 and width // size > 1 and least >= 256:
            methods.append(restored(f"product {size}", partial(_pieces, size=size, fitted=fitted), size))
    return methods


def qdrant_methods(width: int) -> list[Method]:
    """Qdrant's own settings for float vectors of this width, ranked by its engine without rescore."""
    return [
        Method(name, int(width * quantization.bits / 8), partial(_by_engine, quantization))
        for name, quantization in QUANTIZATIONS.items()
    ]


def code_methods(name: str, binarizer: Binarizer) -> list[Method]:
    """Codes at hand, asked with float queries and, as in the paper, with coded ones."""
    spec = binarizer.spec
    trained = spec.method == "learned"

    def make(_judged: JudgedVectors) -> Binarizer:
        return binarizer

    return [
        coded(name, make, "float", spec.bytes, trained),
        coded(f"{name}, coded queries", make, "code", spec.bytes, trained),
    ]


def _binarized(method: untrained.Method, dims: int, bits: int, fitted: Sample) -> Method:
    def make(judged: JudgedVectors) -> Binarizer:
        return make_binarizer(method, fitted(judged), dims, bits)

    return coded(f"{method} {dims}x{bits}", make, "float", dims * bits // 8)


def _turned(dims: int, bits: int, fitted: Sample) -> list[Method]:
    made: dict[str, Binarizer] = {}  # both ways to ask share it, and it takes a while

    def make(judged: JudgedVectors) -> Binarizer:
        if judged.name not in made:
            made[judged.name] = make_binarizer("itq", fitted(judged), dims, bits)
        return made[judged.name]

    name, size = f"itq {dims}x{bits}", dims * bits // 8
    return [coded(name, make, "float", size), coded(f"{name}, coded queries", make, "code", size)]


def _principal(dims: int, bits: int, size: int, fitted: Sample) -> Method:
    def make(judged: JudgedVectors) -> tuple[Vectors, Vectors]:
        rows = fitted(judged)
        directions = principal(rows, dims).T
        return judged.queries @ directions, scalar(judged.documents @ directions, rows @ directions, bits)

    return restored(f"pca {dims} int{bits}", make, size)


def _truncated(dims: int, bits: int, size: int, fitted: Sample) -> Method:
    def make(judged: JudgedVectors) -> tuple[Vectors, Vectors]:
        documents = truncate(judged.documents, dims)
        return truncate(judged.queries, dims), scalar(documents, truncate(fitted(judged), dims), bits)

    return restored(f"truncated {dims} int{bits}", make, size)


def _pieces(judged: JudgedVectors, size: int, fitted: Sample) -> tuple[Vectors, Vectors]:
    return judged.queries, product(judged.documents, fitted(judged)[:_PIECES_FITTED], size)


def _by_engine(quantization: Quantization, judged: JudgedVectors, k: int) -> Ranked:
    most = int(np.bincount(judged.owners).max())  # no document takes more of the vectors found
    found = rank_quantized(
        judged.documents, judged.queries, quantization, min(k * most, len(judged.documents))
    )
    ranked = np.full((len(found), min(k, len(judged.ids))), -1, np.int64)
    for row, vectors in enumerate(found):
        documents = list(dict.fromkeys(judged.owners[vectors].tolist()))[: ranked.shape[1]]
        ranked[row, : len(documents)] = documents
    return ranked
