"""How well cosines of sentences go with what people said of their likeness: semantic textual similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import EncoderConfig
from pipeline.encoders import Encoder, load_plain_encoder
from pipeline.errors import EncoderError, UsageError
from pipeline.evaluation.long import shorten
from pipeline.evaluation.retrieval import read_columns, strings_of
from pipeline.schemas import Observer, Progress

Side = Literal["document", "query"]

_RESAMPLES = 2000
_TEXTS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sentences and what people said of each pair, float64[n]; equal texts are held once, pairs are their numbers."""

    texts: list[str]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    scores: NDArray[np.float64]


def evaluate_sts(
    file: Path, config: EncoderConfig, side: Side = "document", observe: Observer = lambda _: None
) -> dict[str, Any]:
    """Measure an encoder on pairs of sentences, as JSON values: Spearman with its 95 % interval, Pearson.

    `side`: as what both sentences are embedded, which decides on their prompt. `truncated` counts the sentences that
    were longer than the encoder takes: of those the beginning counts. All vectors are held in memory.
    """
    pairs = read_pairs(file)
    observe(Progress("preparing the encoder"))
    encoder = load_plain_encoder(config)
    try:
        vectors, cut = embed_sentences(pairs.texts, encoder, side, observe)
    finally:
        encoder.close()
    cosines = cosines_of(vectors, pairs)
    low, high = np.quantile(spearman_resampled(cosines, pairs.scores), (0.025, 0.975))
    return {
        "encoder": config.model,
        "encoder_version": encoder.spec.version,
        "side": side,
        "pairs": len(pairs.scores),
        "truncated": int(cut[pairs.first].sum() + cut[pairs.second].sum()),
        "spearman": round(spearman(cosines, pairs.scores), 5),
        "spearman_interval": [round(float(low), 5), round(float(high), 5)],
        "pearson": round(_correlation(cosines, pairs.scores), 5),
    }


def read_pairs(file: Path) -> Pairs:
    """Read a Parquet file with columns `sentence1`, `sentence2` and a numeric `score`.

    Raises UsageError for a missing column, a null, an empty sentence, scores that are not finite numbers or all equal,
    and for a file that has no rows or cannot be read.
    """
    table = read_columns(file, "pairs", ("sentence1", "sentence2", "score"))
    if not len(table):
        raise UsageError(f"no row in {file}", "At least two pairs of sentences", "Check --pairs")
    sides = [strings_of(table, name, file) for name in ("sentence1", "sentence2")]
    for name, side in zip(("sentence1", "sentence2"), sides, strict=True):
        empty = next((row for row, text in enumerate(side) if not text.strip()), None)
        if empty is not None:
            raise UsageError(f"an empty {name} in {file}, row {empty}", "Two sentences", "Remove the row")
    scores = _scores(table["score"], file)
    numbers: dict[str, int] = {}
    first, second = (np.array([numbers.setdefault(text, len(numbers)) for text in side]) for side in sides)
    return Pairs(list(numbers), first, second, scores)


def _scores(column: pa.ChunkedArray[pa.Scalar[pa.DataType]], file: Path) -> NDArray[np.float64]:
    """The scores as float64[n]."""
    known = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    if column.null_count or not any(is_kind(column.type) for is_kind in known):
        got = f"column 'score' of {file} of type {column.type} with {column.null_count} nulls"
        raise UsageError(got, "A number in every row", "Convert the column, or remove rows without a score")
    scores: NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise UsageError(f"score {scores[row]} in {file}, row {row}", "Finite numbers", "Remove the row")
    if scores.min() == scores.max():
        raise UsageError(
            f"{len(scores)} pairs in {file}, all with the score {scores[0]:g}",
            "Pairs of different likeness: order is what is measured",
            "Check --pairs",
        )
    return scores


def embed_sentences(
    texts: Sequence[str], encoder: Encoder, side: Side = "document", observe: Observer = lambda _: None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """float32[n, dims] of texts, each a document or a query of its own, and bool[n]: whose beginning alone counts."""
    tokenizer = encoder.tokenizer if side == "document" else encoder.query_tokenizer
    most, after = encoder.spec.max_tokens, tokenizer.around[1]
    vectors, cut = [np.empty((0, encoder.spec.dims), np.float32)], list[bool]()
    for at in range(0, len(texts), _TEXTS_AT_ONCE):
        block = texts[at : at + _TEXTS_AT_ONCE]
        inputs = [tokenizer.encode(text) for text in block]
        cut += [len(ids) > most for ids in inputs]
        if side == "query":
            vectors.append(encoder.encode_queries(block))
        else:
            vectors.append(
                encoder.encode([shorten(ids, after, most) for ids in inputs], np.arange(len(inputs)))
            )
        observe(Progress("embedding", len(cut), len(texts)))
    return np.concatenate(vectors), np.array(cut, bool)


def cosines_of(vectors: NDArray[np.float32], pairs: Pairs) -> NDArray[np.float64]:
    """float64[n]: the cosine of each pair, out of its texts' vectors float32[texts, dims] of any length.

    Raises EncoderError for a vector that has no direction.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
    if len(wrong):
        raise EncoderError(
            f"a vector of length {lengths[wrong[0], 0]} for {pairs.texts[wrong[0]][:80]!r}",
            "Vectors that point somewhere",
            "Check the encoder: headwater encoders check",
        )
    unit = vectors / lengths
    cosines: NDArray[np.float64] = np.einsum("ij,ij->i", unit[pairs.first], unit[pairs.second])
    return cosines


def spearman(cosines: NDArray[np.floating], scores: NDArray[np.floating]) -> float:
    """Spearman's rank correlation of two float[n], equal values sharing the mean of their ranks; 0 for constants."""
    return _correlation(_ranks(_places(cosines)), _ranks(_places(scores)))


def spearman_resampled(
    cosines: NDArray[np.floating], scores: NDArray[np.floating], seed: int = 0
) -> NDArray[np.float64]:
    """float64[resamples]: `spearman` of n pairs drawn again with replacement (bootstrap over pairs).

    The draws depend on the seed and the number of pairs alone: the differences between two encoders' are paired.
    """
    generator = np.random.default_rng(seed)
    ours, theirs = _places(cosines), _places(scores)
    draws = (generator.integers(0, len(ours), len(ours)) for _ in range(_RESAMPLES))
    return np.array([_correlation(_ranks(ours[draw]), _ranks(theirs[draw])) for draw in draws])


def _places(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Which of the distinct values, in ascending order, each is: int64[n]."""
    places: NDArray[np.int64] = np.unique(values, return_inverse=True)[1]
    return places


def _ranks(places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Ranks float64[n] from 1, by counting."""
    counts = np.bincount(places)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def _correlation(ours: NDArray[np.floating], theirs: NDArray[np.floating]) -> float:
    """Pearson's correlation; 0 where one is constant."""
    a, b = ours - ours.mean(), theirs - theirs.mean()
    lengths = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / lengths if lengths else 0.0
