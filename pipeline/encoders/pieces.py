"""A text in several windows of the model, and one vector out of theirs: parallel context windows (LongEmbed, §3.2).

The windows are of equal size and do not overlap. The paper's last one is slid back until it is full: its tokens count
twice then, and a document whose key sentence is among them is found for every query (1 of 100 documents won 46 of 50).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.running import Embedded, Rows, RunRows


def embed_pieces(pieces: Sequence[Rows], run: RunRows, dims: int, normalised: bool) -> Embedded:
    """One vector a text, float32[texts, dims], out of those of its pieces: windows of it, or it in several prompts.

    `run` gives vectors and raw vectors side by side, float32[pieces, 2 · dims].
    """
    counts = [len(rows) for rows in pieces]
    both, too_large = run([row for rows in pieces for row in rows], 2 * dims)
    texts = np.repeat(np.arange(len(counts)), counts)[too_large]
    return Embedded(
        join(both[:, :dims], both[:, dims:], counts, normalised), list(dict.fromkeys(texts.tolist()))
    )


def cut(ids: NDArray[np.int32], around: tuple[int, int], window: int) -> list[NDArray[np.int32]]:
    """Cut int32[n] as the model takes it into pieces of at most `window` tokens, whose sizes differ by 1 at most.

    `around`: how many tokens before and after the text are special tokens and prompt; every piece has them.
    """
    before, after = around
    stop = len(ids) - after
    size, room = stop - before, window - before - after
    count = max(1, -(-size // room))
    if count == 1:
        return [ids]
    cuts = [before + number * size // count for number in range(count + 1)]
    return [np.concatenate([ids[:before], ids[start:end], ids[stop:]]) for start, end in pairwise(cuts)]


def join(
    vectors: NDArray[np.float32], raw: NDArray[np.float32], counts: Sequence[int], normalised: bool
) -> NDArray[np.float32]:
    """One vector a text, float32[texts, dims]: the mean of its pieces' raw vectors, normalised where the model's are.

    `vectors` and `raw` float32[pieces, dims] are with and without that; a text in one piece keeps the vector as it is.
    """
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    if not len(starts):
        return vectors[:0]
    numbers = np.asarray(counts)[:, None]
    means = np.add.reduceat(raw, starts, axis=0, dtype=np.float64) / numbers
    if normalised:
        means = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return np.where(numbers == 1, vectors[starts], means.astype(np.float32))
