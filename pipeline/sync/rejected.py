"""The dead-letter file: every document that was not indexed, where it stood and why, as Parquet."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.schemas import Rejected
from pipeline.sync.ledger import writing

_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("namespace", pa.string()),  # null where the row does not say it
    ("document_id", pa.string()),  # null where the source has none
    ("sequence", pa.int64()),
    ("uri", pa.string()),
    ("row", pa.int64()),
    ("stage", pa.string()),
    ("reason", pa.string()),
    ("message", pa.string()),
]
REJECTED = pa.schema(_COLUMNS)


def write_rejected(file: Path, rejected: Iterable[Rejected]) -> int:
    """Write the dead-letter file in bounded memory and return how many documents it holds.

    The file appears whole or not at all; none appears where nothing was rejected. Raises StoreError where the disk is
    full.
    """
    rows = iter(rejected)
    first = list(itertools.islice(rows, 10_000))
    if not first:
        file.unlink(missing_ok=True)  # of an earlier attempt
        return 0
    written = 0
    fresh = file.with_suffix(".new")
    with writing(file):
        with pq.ParquetWriter(fresh, REJECTED) as out:
            while first:
                out.write_batch(pa.RecordBatch.from_pylist([vars(row) for row in first], schema=REJECTED))
                written += len(first)
                first = list(itertools.islice(rows, 10_000))
        fresh.replace(file)
    return written
