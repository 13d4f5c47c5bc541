"""The gate: an exported graph must give the vectors of the model it was made from, or it is not used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ParityError

Run = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.floating]]
"""Input ids and attention mask int64[n, length] → vectors float[n, dims]."""

Inputs = Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Batches: input ids and attention mask, each int64[n, length], rows padded on the right."""

# Long enough to show what goes wrong with length, short enough for a model of 8192 tokens on a laptop: attention
# scores of one row at 2048 tokens are 16 MB a head.
_LONGEST = 2048
_LONGEST_OF_THREE = 512


@dataclass(frozen=True)
class Bar:
    """What a precision has to reach; `difference` is relative to the largest value of the reference, or to 1."""

    difference: float
    least_cosine: float
    mean_cosine: float


BARS = {
    # fp32 against fp32 differs by the order of additions: 1e-6 at 12 layers; a wrong mask is 0.1.
    "fp32": Bar(difference=2e-5, least_cosine=0.99999, mean_cosine=0.99999),
    # 11 bits of mantissa: 1e-3 a value, which averages out over the dimensions.
    "fp16": Bar(difference=5e-3, least_cosine=0.9995, mean_cosine=0.9998),
    # 8 bits a weight and an activation: MiniLM 0.9966 and 0.9984, mpnet-base 0.970 and 0.9936, random tokens included;
    # on text 0.9977 and 0.9987. Their nDCG@10 on three small judged collections moves by 0.008 at most.
    "int8": Bar(difference=5e-2, least_cosine=0.95, mean_cosine=0.99),
}


@dataclass(frozen=True)
class Figures:
    """What the gate measured: the largest difference (relative, as in Bar), least and mean cosine."""

    difference: float
    least_cosine: float
    mean_cosine: float


def probes(
    samples: Sequence[NDArray[np.int32]], vocabulary: int, pad_id: int, max_tokens: int, window: int = 0
) -> Inputs:
    """Inputs that find what exports get wrong: one row and three, one token to the longest, even and uneven padding.

    `samples` are inputs of ordinary text; the others are random tokens out of the vocabulary. `window`: where the graph
    does something else with longer rows; rows about it and of twice its length are among them.
    """
    generator = np.random.default_rng(0)
    longest, long = min(max_tokens, _LONGEST), min(max_tokens, _LONGEST_OF_THREE)

    def random(length: int) -> NDArray[np.int32]:
        drawn = generator.integers(0, vocabulary - 1, size=min(length, max_tokens), dtype=np.int32)
        return drawn + (drawn >= pad_id).astype(np.int32)  # any token but the padding

    rows = [sample[:max_tokens] for sample in samples]
    groups = [[random(1)], [random(longest)], [random(7)] * 3, [random(long), random(5), random(1)]]
    if window:
        twice = min(2 * window, longest)
        groups += [[random(window)], [random(window + 1)]]
        if window < longest:  # three rows beyond that are more than a laptop holds
            groups.append([random(window - 1), random(twice), random(window + 1)])
    groups += [[row] for row in rows[:2]] + [rows[n : n + 3] for n in range(0, len(rows), 3)]
    return [pad(group, pad_id) for group in groups if group]


def pad(rows: Sequence[NDArray[np.integer]], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Input ids and attention mask int64[n, length], filled up on the right."""
    lengths = np.array([len(row) for row in rows])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask.astype(bool)] = np.concatenate(rows)
    return ids, mask


def check_parity(
    name: str,
    precision: str,
    reference: Sequence[NDArray[np.floating]],
    run: Run,
    inputs: Inputs,
) -> Figures:
    """Run the graph on the probes and compare with the reference's vectors; raises ParityError with the figures."""
    pairs = [(expected, run(ids, mask)) for expected, (ids, mask) in zip(reference, inputs, strict=True)]
    for (expected, got), (ids, _) in zip(pairs, inputs, strict=True):
        for what, vectors in (("the model itself", expected), (name, got)):
            if not np.isfinite(vectors).all():
                raise ParityError(
                    f"{what} gives NaN or infinite values for {len(ids)} inputs of up to {ids.shape[1]} tokens",
                    "Finite vectors",
                    "The weights are broken: fetch the model again"
                    if what == "the model itself"
                    else "Choose another encoder.precision",
                )
        if expected.shape != got.shape:
            raise ParityError(
                f"{name} gives vectors {got.shape}, the model {expected.shape}", "The same shape"
            )
    figures = compare(pairs)
    bar = BARS[precision]
    if not passes(figures, precision):
        raise ParityError(
            f"{name} differs from the model by {figures.difference:.2g}, cosine at least {figures.least_cosine:.6f}, "
            f"on average {figures.mean_cosine:.6f}",
            f"For {precision} at most {bar.difference:g}, at least {bar.least_cosine} and {bar.mean_cosine}",
            "This model cannot be used this way"
            + ("" if precision == "fp32" else "; encoder.precision = fp32 may pass"),
        )
    return figures


def passes(figures: Figures, precision: str) -> bool:
    """Whether figures are within the bar of a precision; those of NaN are not."""
    bar = BARS[precision]
    return (
        figures.difference <= bar.difference
        and figures.least_cosine >= bar.least_cosine
        and figures.mean_cosine >= bar.mean_cosine
    )


def compare(pairs: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]]) -> Figures:
    """Measure how far vectors float[n, dims] are from those expected: pairs (expected, got)."""
    expected = np.concatenate([pair[0] for pair in pairs]).astype(np.float64)
    got = np.concatenate([pair[1] for pair in pairs]).astype(np.float64)
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
    cosines = (expected * got).sum(axis=1) / np.maximum(norms, 1e-30)
    difference = np.abs(expected - got).max() / max(1.0, np.abs(expected).max())
    return Figures(float(difference), float(cosines.min()), float(cosines.mean()))
