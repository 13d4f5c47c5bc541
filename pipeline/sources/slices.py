"""Cutting record batches so that what is worked on at a time is bounded in rows and in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.sources.values import Column, byte_lengths


@dataclass(frozen=True)
class Part:
    """A piece of a file: its row groups or record batches [start, stop), and their rows if they are known."""

    start: int
    stop: int
    rows: int | None


@dataclass(frozen=True)
class Size:
    """How large a piece of a batch may be: at most `rows`, and about `bytes`; one row is always taken."""

    rows: int
    bytes: int


def windows(batch: pa.RecordBatch, size: Size) -> Iterator[pa.RecordBatch]:
    """Cut a batch into slices of this size, in order, without copying; a larger row stands alone."""
    if batch.num_rows == 0:
        return
    ends = np.cumsum(sum((row_bytes(column) for column in batch.columns), np.zeros(batch.num_rows, np.int64)))
    start, before = 0, 0
    while start < batch.num_rows:
        fits = int(np.searchsorted(ends, before + size.bytes, side="right"))
        stop = max(start + 1, min(fits, start + size.rows, batch.num_rows))
        yield batch.slice(start, stop - start)
        start, before = stop, int(ends[stop - 1])


def row_bytes(array: Column) -> NDArray[np.int64]:
    """int64[n]: bytes of each value; exact for strings and binary, an average for everything else."""
    kind = array.type
    if pa.types.is_dictionary(kind) and isinstance(array, pa.DictionaryArray):
        if len(array.dictionary) == 0:
            return np.zeros(len(array), np.int64)
        sizes: NDArray[np.int64] = row_bytes(array.dictionary)[
            array.indices.fill_null(0).to_numpy(zero_copy_only=False)
        ]
        return sizes
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        # a view is 16 bytes of which the first four hold its length; pyarrow has no kernel for it
        views = array.buffers()[1]
        lengths = np.frombuffer(views, np.int32)[::4] if views is not None else np.zeros(0, np.int32)
        return lengths[array.offset : array.offset + len(array)].astype(np.int64)
    if _is_text(kind):
        return byte_lengths(array)
    return np.full(len(array), array.nbytes // max(1, len(array)), np.int64)


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )
