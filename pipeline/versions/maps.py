"""Maps from one encoder's space into another's, and the closed forms that fit them on vectors of the same texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Wide = NDArray[np.float64]

_BLOCK_ROWS = 4096
_PENALTIES = np.logspace(-6, 1, 29)  # λ, in units of xᵀx's mean eigenvalue
_REACH = 2.0  # of the kernel exp(−reach · |x − t|² / 2): cosines of .5 still weigh a third
_MOST_KNOWN = 4000  # texts that a kernel remembers: each is looked at for every vector mapped
_NOISE = 0.05  # of the kernel's ridge: what of a residual is not believed


@dataclass(frozen=True, eq=False)
class Map:
    """x ↦ unit(x · weight + bias + what bends it), balanced against native vectors.

    weight float32[d_in, d_out], bias float32[d_out]. Bent by a kernel around known texts float32[m, d_in] with pulls
    float32[m, d_out], or by a hidden layer: wide float32[d_in, h], shift float32[h], narrow float32[h, d_out]; None: by
    nothing. aside float32[d_out]: what each unit vector is then mixed with (0: not at all), see `balance.py`.
    """

    weight: Vectors
    bias: Vectors
    texts: Vectors | None = None
    pulls: Vectors | None = None
    wide: Vectors | None = None
    shift: Vectors | None = None
    narrow: Vectors | None = None
    aside: Vectors | None = None

    def __call__(self, vectors: Vectors) -> Vectors:
        """Map float32[n, d_in] to unit rows float32[n, d_out]; row i depends on row i alone."""
        mapped = np.empty((len(vectors), self.weight.shape[1]), np.float32)
        for at in range(0, len(vectors), _BLOCK_ROWS):
            mapped[at : at + _BLOCK_ROWS] = self.mixed(to_unit(self.raw(vectors[at : at + _BLOCK_ROWS])))
        return mapped

    def raw(self, vectors: Vectors) -> Vectors:
        """The regression itself, float32[n, d_out], of no particular length."""
        value: Vectors = vectors @ self.weight + self.bias
        if self.texts is not None and self.pulls is not None:
            value = value + near(vectors, self.texts) @ self.pulls
        if self.wide is not None and self.shift is not None and self.narrow is not None:
            value = value + np.maximum(vectors @ self.wide + self.shift, 0) @ self.narrow
        return value

    def mixed(self, unit: Vectors) -> Vectors:
        """Unit vectors float32[n, d_out] mixed with what balances them, of length 1 again."""
        if self.aside is None:
            return unit
        share = float(np.linalg.norm(self.aside))
        return to_unit(np.float32(np.sqrt(1 - share * share)) * unit + self.aside)

    def arrays(self) -> dict[str, Vectors]:
        """The arrays that there are, by name."""
        return {name: array for name, array in vars(self).items() if array is not None}


def to_unit(vectors: Vectors) -> Vectors:
    """Rows of length 1; a row of zeros stays one."""
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def near(vectors: Vectors, texts: Vectors) -> Vectors:
    """float32[n, m]: exp(−reach · |x − t|² / 2) for unit vectors float32[n, d] and float32[m, d]."""
    weights: Vectors = np.exp(np.float32(_REACH) * (vectors @ texts.T - 1))
    return weights


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
    return _affine(_ridge_weight(x, y), mean_x, mean_y)


def low_rank(source: Vectors, target: Vectors) -> Map:
    """Reduced-rank regression: ridge, kept to the half of its directions that explain most (Drift-Adapter's LA)."""
    x, y, mean_x, mean_y = _centred(source, target)
    weight = _ridge_weight(x, y)
    rank = min(weight.shape) // 2
    _, basis = np.linalg.eigh((x @ weight).T @ (x @ weight))
    kept = basis[:, -rank:]
    return _affine(weight @ kept @ kept.T, mean_x, mean_y)


def anchors(source: Vectors, target: Vectors) -> Map:
    """Relative representations (Moschella et al., ICLR 2023), every text an anchor: the baseline that fits nothing.

    A vector becomes its products with the anchors, ⟨r(q), r(d)⟩ = q · (targetᵀ source) · d: a linear map.
    """
    weight = (source.T @ target) / np.float32(len(source))
    return Map(weight, np.zeros(weight.shape[1], np.float32))


def kernel(source: Vectors, target: Vectors) -> Map:
    """Procrustes, and kernel ridge regression on what it leaves: right near known texts, a rotation far from them."""
    start = procrustes(source, target)
    known = source[:_MOST_KNOWN]
    missing = (target[:_MOST_KNOWN] - start.raw(known)).astype(np.float64)
    weights = near(known, known).astype(np.float64)
    weights[np.diag_indices(len(weights))] += _NOISE
    return Map(start.weight, start.bias, known, np.linalg.solve(weights, missing).astype(np.float32))


def _ridge_weight(x: Wide, y: Wide) -> Wide:
    values, basis = np.linalg.eigh(x.T @ x)
    values = np.maximum(values, 0.0)
    products = basis.T @ (x.T @ y)
    penalty = _gcv(values, products, float((y * y).sum()), len(x))
    weight: Wide = basis @ (products / (values + penalty)[:, None])
    return weight


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
