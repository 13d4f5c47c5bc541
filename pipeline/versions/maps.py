"""Maps from one encoder's space into another's, and the closed forms that fit them on vectors of the same texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Wide = NDArray[np.float64]

_BLOCK_ROWS = 8192
_PENALTIES = np.logspace(
    -6, 1, 29
)  # λ, as shares of the vectors' mean variance a dimension, times their number


@dataclass(frozen=True, eq=False)
class Map:
    """x ↦ x · weight + bias, scaled to length 1: float32[d_in, d_out] and float32[d_out]."""

    weight: Vectors
    bias: Vectors

    def __call__(self, vectors: Vectors) -> Vectors:
        """Map float32[n, d_in] to unit rows float32[n, d_out]; row i depends on row i alone."""
        mapped = np.empty((len(vectors), self.weight.shape[1]), np.float32)
        for at in range(0, len(vectors), _BLOCK_ROWS):
            mapped[at : at + _BLOCK_ROWS] = to_unit(vectors[at : at + _BLOCK_ROWS] @ self.weight + self.bias)
        return mapped

    def arrays(self) -> dict[str, Vectors]:
        """All arrays by name."""
        return {"weight": self.weight, "bias": self.bias}


def to_unit(vectors: Vectors) -> Vectors:
    """Rows of length 1; a row of zeros stays one."""
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def procrustes(source: Vectors, target: Vectors) -> Map:
    """Centred orthogonal Procrustes (Schönemann 1966); semi-orthogonal where the spaces differ in width.

    Without centring the spaces' means, which say nothing, decide the rotation.
    """
    x, y, mean_x, mean_y = _centred(source, target)
    left, _, right = np.linalg.svd(x.T @ y, full_matrices=False)
    return _affine(left @ right, mean_x, mean_y)


def ridge(source: Vectors, target: Vectors) -> Map:
    """Ridge regression with a bias that is not penalised; λ by generalised cross-validation (Golub et al. 1979)."""
    x, y, mean_x, mean_y = _centred(source, target)
    values, basis = np.linalg.eigh(x.T @ x)
    values = np.maximum(values, 0.0)
    products = basis.T @ (x.T @ y)
    penalty = _gcv(values, products, float((y * y).sum()), len(x))
    return _affine(basis @ (products / (values + penalty)[:, None]), mean_x, mean_y)


def _gcv(values: Wide, products: Wide, total: float, rows: int) -> float:
    """The λ with the least n · residual / (n − degrees of freedom)², from xᵀx's eigenvalues and xᵀy in their basis."""
    energy = (products * products).sum(axis=1)
    best, chosen = np.inf, 0.0
    for penalty in _PENALTIES * float(values.mean()):
        shrunk = 1 / (values + penalty)
        residual = total - float((energy * (2 * shrunk - values * shrunk * shrunk)).sum())
        free = rows - 1 - float((values * shrunk).sum())
        score = rows * max(residual, 0.0) / max(free, 1e-9) ** 2
        if score < best:
            best, chosen = score, float(penalty)
    return chosen


def _centred(source: Vectors, target: Vectors) -> tuple[Wide, Wide, Wide, Wide]:
    x, y = source.astype(np.float64), target.astype(np.float64)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    return x - mean_x, y - mean_y, mean_x, mean_y


def _affine(weight: Wide, mean_x: Wide, mean_y: Wide) -> Map:
    return Map(weight.astype(np.float32), (mean_y - mean_x @ weight).astype(np.float32))
