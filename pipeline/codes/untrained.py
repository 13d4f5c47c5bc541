"""Binarizers that need no training: sign, random rotation, PCA, iterative quantization (ITQ).

All are linear: a plane after the first says on which side of the value so far a projection lies.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.codes.binarizer import Binarizer, BinarizerSpec, on_grid, to_unit
from pipeline.errors import EncoderError

Method = Literal["sign", "rotation", "pca", "itq"]

_ITQ_ROUNDS = 50  # as Gong & Lazebnik 2011


def make_binarizer(
    method: Method,
    sample: NDArray[np.float32],
    dims: int,
    bits: int,
    seed: int = 0,
    centre: bool = True,
    encoder_version: str = "",
) -> Binarizer:
    """Construct a binarizer from a sample float32[n, input_dims] of the vectors it is for.

    sign: the first `dims` coordinates; rotation: a random orthonormal basis (of more directions than `input_dims`:
    several); pca: the directions of most variance; itq: those, turned so that signs lose least. With `centre`, codes
    are of the distance from the sample's mean. Raises EncoderError for too few vectors, or more dimensions than pca
    and itq have.
    """
    check_sample(sample, dims if method in ("pca", "itq") else 1)
    unit = to_unit(sample.astype(np.float64))
    mean = unit.mean(axis=0) if centre else np.zeros(unit.shape[1])
    directions = _directions(method, unit - mean, dims, seed)
    spec = BinarizerSpec(method, encoder_version, unit.shape[1], dims, bits, "projection")
    first = on_grid([(directions, -directions @ mean)], 1.0)
    refine = on_grid([(directions, np.zeros(dims))], 2.0)
    query, middle = directions.astype(np.float32), mean.astype(np.float32)
    made = Binarizer(replace(spec, bits=1), first, (), (), query, middle)
    for plane in range(1, bits):
        planes = made.planes(unit)
        code = np.where(planes, 1.0, -1.0).transpose(0, 2, 1) @ 2.0 ** -np.arange(plane)
        rebuild = (*made.rebuild, on_grid([_rebuild(directions, code, unit, mean)], 2.0))
        made = Binarizer(replace(spec, bits=plane + 1), first, rebuild, (refine,) * plane, query, middle)
    return made


def check_sample(sample: NDArray[np.floating], least: int) -> None:
    """Raise EncoderError unless there are `least` vectors, all finite, that differ in every dimension."""
    if sample.ndim != 2 or len(sample) < max(least, 2):
        raise EncoderError(
            f"a sample of vectors of shape {sample.shape}",
            f"At least {max(least, 2)} vectors",
            "Take more documents, or fewer dimensions",
        )
    if not np.isfinite(sample).all():
        bad = int((~np.isfinite(sample).all(axis=1)).sum())
        raise EncoderError(
            f"{bad} of {len(sample)} vectors with NaN or infinite values", "Finite numbers", "Leave them out"
        )
    constant = int((np.ptp(sample, axis=0) == 0).sum())
    if constant:
        raise EncoderError(
            f"{constant} of {sample.shape[1]} dimensions are the same in all {len(sample)} vectors",
            "Vectors that differ in every dimension",
            "Check the encoder: an empty dimension takes room in every code and says nothing",
        )


def _directions(method: Method, rows: NDArray[np.float64], dims: int, seed: int) -> NDArray[np.float64]:
    """float64[dims, input_dims]: what is projected on before the sign is taken."""
    width = rows.shape[1]
    generator = np.random.default_rng(seed)
    if method == "rotation":
        turns = [_rotation(width, generator) for _ in range(-(-dims // width))]
        return np.concatenate(turns)[:dims]
    if dims > width:
        raise EncoderError(
            f"{dims} dimensions by {method} from vectors of {width}",
            f"At most {width}",
            "Use method rotation",
        )
    if method == "sign":
        return np.eye(width)[:dims]
    principal: NDArray[np.float64] = np.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, :dims]
    if method == "pca":
        return principal.T
    projected = rows @ principal
    turn = _rotation(dims, generator)
    for _ in range(_ITQ_ROUNDS):
        signs = np.where(projected @ turn > 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(projected.T @ signs)
        turn = left @ right
    return (principal @ turn).T


def _rotation(width: int, generator: np.random.Generator) -> NDArray[np.float64]:
    turn, upper = np.linalg.qr(generator.standard_normal((width, width)))
    rotation: NDArray[np.float64] = turn * np.sign(np.diag(upper))
    return rotation


def _rebuild(
    directions: NDArray[np.float64],
    code: NDArray[np.float64],
    unit: NDArray[np.float64],
    mean: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight [input_dims, dims] and bias [input_dims] that put codes back along their directions.

    They get the energy that projections have, so that a plane's threshold is where half of them lie beyond. Rebuilt
    vectors are scaled to length 1 next; a part at a right angle to all directions keeps that from stretching them.
    """
    back = code @ directions
    weight = directions.T * np.linalg.norm((unit - mean) @ directions.T) / np.linalg.norm(back @ directions.T)
    missing = 1 - float(np.mean(((code @ weight.T + mean) ** 2).sum(axis=1)))
    outside = mean - np.linalg.pinv(directions) @ (directions @ mean)
    if missing <= 0 or (length := float(np.linalg.norm(outside))) < 1e-9:
        return weight, mean
    along = outside / length
    return weight, mean + along * (math.sqrt(length**2 + missing) - length)
