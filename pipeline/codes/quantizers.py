"""Compressed vectors that are no planes of bits, as they come back: scalar int8 and int4, product quantization.

They are what codes are compared with. Each function returns float32[n, dims] as a store would rank by it and takes
`sample`, the vectors that ranges and centroids are fitted on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EncoderError

Vectors = NDArray[np.float32]

_QUANTILE = 0.995  # a range that ignores the outermost values keeps more of the others
_CENTROIDS = 256
_ROUNDS = 12


def scalar(documents: Vectors, sample: Vectors, bits: int) -> Vectors:
    """Quantize each dimension to 2^bits steps over the range it has in the sample: dims · bits / 8 bytes."""
    low = np.quantile(sample, 1 - _QUANTILE, axis=0)
    step = np.maximum((np.quantile(sample, _QUANTILE, axis=0) - low) / (2**bits - 1), 1e-12)
    steps = np.clip(np.rint((documents - low) / step), 0, 2**bits - 1)
    restored: Vectors = (low + steps * step).astype(np.float32)
    return restored


def principal(sample: Vectors, dims: int) -> Vectors:
    """The `dims` directions of most variance, float32[dims, input_dims]: project documents and queries on them."""
    rows = sample - sample.mean(axis=0)
    directions: Vectors = np.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, :dims].T.astype(np.float32)
    return directions


def truncate(vectors: Vectors, dims: int) -> Vectors:
    """The first `dims` coordinates, at length 1: what a Matryoshka model is trained for."""
    kept = vectors[:, :dims]
    shortened: Vectors = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)
    return shortened


def product(documents: Vectors, sample: Vectors, size: int, seed: int = 0) -> Vectors:
    """Product quantization to `size` bytes: as many pieces of a vector, each one of 256 centroids of the sample.

    Raises EncoderError where vectors cannot be cut into `size` equal pieces or the sample has fewer than 256 rows.
    """
    width = documents.shape[1]
    if width % size or len(sample) < _CENTROIDS:
        raise EncoderError(
            f"{size} bytes for vectors of {width} dimensions, fitted on {len(sample)}",
            f"A divisor of {width}, and at least {_CENTROIDS} vectors",
            "Choose another size",
        )
    generator = np.random.default_rng(seed)
    pieces = []
    for at in range(0, width, width // size):
        part = slice(at, at + width // size)
        centroids = _centroids(sample[:, part], generator)
        pieces.append(centroids[_nearest(documents[:, part], centroids)])
    return np.concatenate(pieces, axis=1)


def _centroids(rows: Vectors, generator: np.random.Generator) -> Vectors:
    """k-means, float32[256, width]; a centroid that nothing is near to stays."""
    centroids = rows[generator.choice(len(rows), _CENTROIDS, replace=False)].copy()
    for _ in range(_ROUNDS):
        nearest = _nearest(rows, centroids)
        sums = np.zeros_like(centroids)
        np.add.at(sums, nearest, rows)
        counts = np.bincount(nearest, minlength=_CENTROIDS)[:, None]
        centroids = np.where(counts, sums / np.maximum(counts, 1), centroids).astype(np.float32)
    return centroids


def _nearest(rows: Vectors, centroids: Vectors) -> NDArray[np.intp]:
    nearest: NDArray[np.intp] = ((centroids**2).sum(axis=1) - 2 * rows @ centroids.T).argmin(axis=1)
    return nearest
