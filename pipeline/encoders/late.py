"""Late chunking (arXiv 2409.04701): a chunk's vector is the mean of its tokens as the model sees them in the document.

A document longer than the model's window is run in several passes. Each token counts in the pass whose part it is in;
what room is left in that pass is filled with the tokens before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.running import Embedded, Rows, RunBatches

# Of the window, for the tokens before a later pass's part: as much as the reference gives its macro windows.
_CONTEXT = 1 / 16


@dataclass(frozen=True, eq=False)
class Pass:
    """One row for the model, int32[n], and the chunk that each token counts for, int64[n], by number; −1: none."""

    ids: NDArray[np.int32]
    owners: NDArray[np.int64]


def embed_late(
    chunks: Rows,
    documents: NDArray[np.integer],
    run: RunBatches,
    around: tuple[int, int],
    window: int,
    dims: int,
    normalised: bool,
) -> Embedded:
    """float32[n, dims]: the means of n chunks' token states in their documents.

    `documents` integer[n] says which document each is a chunk of, the chunks of one in order and next to each other;
    `run` gives token states float[rows, length, hidden]; `around` and `window` as in `passes`.
    """
    starts = np.flatnonzero(np.diff(documents, prepend=-1 if not len(documents) else documents[0] - 1))
    todo = [
        Pass(one.ids, np.where(one.owners < 0, -1, one.owners + start))
        for start, stop in pairwise([*starts.tolist(), len(chunks)])
        for one in passes(chunks[start:stop], around, window)
    ]
    means, too_large = Means(len(chunks), dims), list[int]()
    for batch, states in run([one.ids for one in todo]):
        for row, number in enumerate(batch):
            owners = todo[number].owners
            if states is None:
                too_large += np.unique(owners[owners >= 0]).tolist()
            else:
                means.add(states[row, : len(owners)], owners)
    vectors = means.vectors(normalised)
    vectors[too_large] = np.nan
    return Embedded(vectors, list(dict.fromkeys(too_large)))


def passes(chunks: Sequence[NDArray[np.int32]], around: tuple[int, int], window: int) -> Iterator[Pass]:
    """Yield the passes over a document, given its chunks in order, each as the model takes it alone.

    `around`: how many of a chunk's tokens before and after its text are special tokens and prompt. Those before the
    document count for its first chunk, those behind it for its last: a document of one chunk has its usual vector.
    """
    before, after = around
    bodies = [ids[before : len(ids) - after] for ids in chunks]
    text = np.concatenate(bodies)
    owners = np.repeat(np.arange(len(bodies)), [len(body) for body in bodies])
    first, last = chunks[0][:before], chunks[-1][len(chunks[-1]) - after :]
    room = window - before - after
    step = room - int(room * _CONTEXT)
    count = 1 if len(text) <= room else -(-len(text) // step)
    cuts = [number * len(text) // count for number in range(count + 1)]
    for number in range(count):
        start, end = cuts[number], cuts[number + 1]
        begin = max(0, end - room)
        inside = np.where(np.arange(begin, end) < start, -1, owners[begin:end])
        head = np.full(before, 0 if number == 0 else -1)
        tail = np.full(after, len(bodies) - 1 if number == count - 1 else -1)
        yield Pass(
            np.concatenate([first, text[begin:end], last]),
            np.concatenate([head, inside, tail]).astype(np.int64),
        )


class Means:
    """The means of states by chunk, as passes come in; float64, so that their order does not matter."""

    def __init__(self, chunks: int, dims: int) -> None:
        self._sums = np.zeros((chunks, dims))
        self._counts = np.zeros(chunks)

    def add(self, states: NDArray[np.floating], owners: NDArray[np.int64]) -> None:
        """Take the states float[n, hidden] of tokens that count for these chunks int64[n]: their first dimensions."""
        counted = owners >= 0
        starts = np.flatnonzero(np.diff(owners[counted], prepend=-1))
        if len(starts):
            named = owners[counted][starts]
            some = states[counted, : self._sums.shape[1]]
            self._sums[named] += np.add.reduceat(some, starts, axis=0, dtype=np.float64)
            self._counts[named] += np.diff(starts, append=counted.sum())

    def vectors(self, normalised: bool) -> NDArray[np.float32]:
        """The means, float32[chunks, dims], normalised where the model's vectors are; 0 where nothing was counted."""
        means = self._sums / np.maximum(self._counts, 1)[:, None]
        if normalised:
            means = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return means.astype(np.float32)
