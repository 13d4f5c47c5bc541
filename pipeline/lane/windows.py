"""Windows: the chunks that are encoded together, gathered from and cut out of what the chunker yields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.encoders import Reading
from pipeline.errors import BrokenInvariant
from pipeline.schemas import CHUNKS, Rejected
from pipeline.stores import Head, Key

TOKENS = "token_ids"  # how the names of columns of tokens begin
NO_CHUNKS = pa.RecordBatch.from_pylist([], schema=CHUNKS)

WINDOW_ROWS = 8192  # a stream of deletes or of bad rows has no tokens, and is not to be held whole either
_BYTES_A_KEY = 400  # a delete, a head or a rejection as a Python object


@dataclass(frozen=True)
class Patch:
    """New metadata (JSON) and sequence of a stored document whose text is the same."""

    key: Key
    metadata: str
    sequence: int
    row: int


@dataclass(frozen=True)
class Window:
    """Chunks (CHUNKS) in document order, and what became of the rows between them that are not to be embedded.

    `stored` holds the heads of the documents at hand, in this window or the next ones, that the store has already.
    Only the last document of a window may be unfinished; it goes on in the next one. `rows` counts the rows of the
    source that were read for this window and not for an earlier one: the other side of the trailer.

    `tombstones` are to be set, by the sequences of these deletions; those of the documents in `revived` have no use any
    more once a version from here is written. `leftovers` are stored though a newer row has deleted them. `without` are
    the points of chunks that lack a vector, and why; `truncated` counts documents that lost their end.

    Beside CHUNKS' columns there may be tokens of the same texts by other readings: see `also_read`.
    """

    chunks: pa.RecordBatch
    rows: int = 0
    deleted: tuple[Key, ...] = ()
    tombstones: Mapping[Key, int] = field(default_factory=dict)
    revived: tuple[Key, ...] = ()
    leftovers: tuple[Key, ...] = ()
    patches: tuple[Patch, ...] = ()
    unchanged: int = 0
    stale: int = 0
    stored: Mapping[Key, Head] = field(default_factory=dict)
    rejected: tuple[Rejected, ...] = ()
    without: Mapping[str, str] = field(default_factory=dict)
    truncated: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes the window keeps in memory, about."""
        keys = len(self.deleted) + len(self.tombstones) + len(self.revived) + len(self.leftovers)
        objects = keys + len(self.patches) + len(self.stored) + len(self.rejected)
        metadata = sum(len(patch.metadata) for patch in self.patches)
        return int(self.chunks.nbytes) + metadata + _BYTES_A_KEY * objects


def gather(pieces: Iterable[Window], window_tokens: int, whole: bool = False) -> Iterator[Window]:
    """Regroup pieces into windows of `window_tokens` to twice as many tokens, or of WINDOW_ROWS rows if that is less.

    Sorting by length pays in large windows; a window is also what memory holds and what progress steps by. `whole`: no
    document goes on in the next window, however long it is.
    """
    waiting: list[Window] = []
    tokens = rows = 0
    for piece in _whole(pieces) if whole else pieces:
        for part in [piece] if whole else _cut(piece, window_tokens):
            waiting.append(part)
            tokens += int(token_counts(part.chunks).sum())
            rows += part.rows
            if tokens >= window_tokens or rows >= WINDOW_ROWS:
                yield _join(waiting)
                waiting, tokens, rows = [], 0, 0
    if waiting:
        yield _join(waiting)


def also_read(window: Window, readings: Mapping[str, Reading]) -> Window:
    """A window whose chunks have columns with their tokens by other readings, too.

    A text of more tokens than a reading takes has none by it: nothing is truncated, and its document is rejected.
    """
    chunks, texts = window.chunks, [str(text) for text in window.chunks.column("text").to_pylist()]
    without: dict[str, str] = {}
    for name, (tokenizer, most) in readings.items():
        token_ids = tokenizer.encode_batch(texts)
        for row, ids in enumerate(token_ids):
            if len(ids) > most:
                without[chunks.column("point_id")[row].as_py()] = "too_long"
                token_ids[row] = ids[:0]
        column = pa.array(token_ids, type=pa.list_(pa.int32()))
        chunks = chunks.append_column(f"{TOKENS}{name}", column)
    return replace(window, chunks=chunks, without=without)


def document_numbers(chunks: pa.RecordBatch) -> NDArray[np.int64]:
    """Which document of the batch each chunk is of, int64[n]; chunks of one are next to each other."""
    return np.cumsum(chunks.column("chunk_index").to_numpy() == 0)


def token_arrays(chunks: pa.RecordBatch, reading: str = "") -> list[NDArray[np.int32]]:
    """The chunks' `token_ids`, by the main encoder or another reading, as int32 arrays, without copying."""
    column = _token_ids(chunks, reading)
    values: NDArray[np.int32] = column.values.to_numpy(zero_copy_only=True)
    offsets = column.offsets.to_numpy()
    return [values[start:stop] for start, stop in pairwise(offsets.tolist())]


def token_counts(chunks: pa.RecordBatch) -> NDArray[np.int64]:
    """How many tokens each chunk has, int64[n]."""
    offsets: NDArray[np.int32] = _token_ids(chunks).offsets.to_numpy()
    return np.diff(offsets).astype(np.int64)


def _token_ids(chunks: pa.RecordBatch, reading: str = "") -> Any:  # noqa: ANN401 - a pa.ListArray; the stubs lack what it can do
    return chunks.column(f"{TOKENS}{reading}")


def _whole(pieces: Iterable[Window]) -> Iterator[Window]:
    """Keep the chunks of a document back until all of them are there."""
    begun = NO_CHUNKS
    for piece in pieces:
        chunks = _concat([begun, piece.chunks]) if begun.num_rows else piece.chunks
        last = chunks.slice(max(0, chunks.num_rows - 1)).to_pylist()
        open_chunks = sum(
            row["chunk_index"] + 1 for row in last if row["chunk_index"] + 1 < row["chunk_count"]
        )
        ready = chunks.num_rows - open_chunks
        begun = chunks.slice(ready)
        yield replace(piece, chunks=chunks.slice(0, ready))
    if begun.num_rows:
        raise BrokenInvariant(
            f"a document that ends after {begun.num_rows} of its chunks", "All of its chunks"
        )


def _concat(batches: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
    some = [batch for batch in batches if batch.num_rows]  # those without rows have CHUNKS' columns alone
    return pa.Table.from_batches(some).combine_chunks().to_batches()[0] if some else NO_CHUNKS


def _cut(piece: Window, window_tokens: int) -> Iterator[Window]:
    """Cut a piece before the chunks at which its running token count passes a multiple of `window_tokens`."""
    ends = token_counts(piece.chunks).cumsum()
    if not len(ends) or ends[-1] <= window_tokens:
        yield piece
        return
    cuts = [0, *(np.flatnonzero(np.diff(ends // window_tokens)) + 1).tolist(), len(ends)]
    for number, (start, stop) in enumerate(pairwise(cuts)):
        chunks = piece.chunks.slice(start, stop - start)
        yield replace(piece, chunks=chunks) if number == 0 else Window(chunks)


def _join(parts: list[Window]) -> Window:
    """One window out of several; copies, so that no part keeps a larger parent alive."""
    return Window(
        _concat(part.chunks for part in parts),
        rows=sum(part.rows for part in parts),
        deleted=tuple(key for part in parts for key in part.deleted),
        tombstones={key: sequence for part in parts for key, sequence in part.tombstones.items()},
        revived=tuple(key for part in parts for key in part.revived),
        leftovers=tuple(key for part in parts for key in part.leftovers),
        patches=tuple(patch for part in parts for patch in part.patches),
        unchanged=sum(part.unchanged for part in parts),
        stale=sum(part.stale for part in parts),
        stored={key: head for part in parts for key, head in part.stored.items()},
        rejected=tuple(rejected for part in parts for rejected in part.rejected),
        without={id: why for part in parts for id, why in part.without.items()},
        truncated=sum(part.truncated for part in parts),
    )
