"""What the state folder says of single documents, and its removal.

    run-*.jsonl         ledgers: the rejected rows of their splits; the entries go, the counts stay
    rejected-*.parquet  dead-letter files: the rows go
    watch-*.sqlite      manifests of watched sources name all their documents: they go whole, and are made anew

Nothing here is needed for a later run to be right.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.sync.ledger import read_entries
from pipeline.sync.rejected import REJECTED

_NAMES = ("run-*.jsonl", "rejected-*.parquet", "watch-*.sqlite*", "*.new")


def trace_files(folder: Path) -> list[Path]:
    """The files of a collection's state folder that may say something of single documents."""
    return sorted(file for name in _NAMES for file in folder.glob(name))


def count_traces(file: Path, namespace: str, document_id: str | None) -> int:
    """How many entries of a file are about a document, or (None) about any of the namespace.

    A manifest, and what a crash left of a file half-written, counts as one. Raises StoreError for a damaged file.
    """
    if not file.exists():
        return 0
    match file.suffix:
        case ".jsonl":
            return sum(len(_rejected(entry.values)) - len(_others(entry.values, namespace, document_id))
                       for entry in read_entries(file))  # fmt: skip
        case ".parquet":
            return sum(len(rows) - len(_kept(rows, namespace, document_id)) for rows in _rows(file))
    return 1


def remove_traces(file: Path, namespace: str, document_id: str | None) -> None:
    """Remove what `count_traces` counts. A crash leaves the file as it was or as it should be; safe to repeat."""
    if not count_traces(file, namespace, document_id):
        return
    if file.suffix not in (".jsonl", ".parquet"):
        file.unlink()
        return
    times = file.stat()
    fresh = file.with_suffix(".new")
    if file.suffix == ".jsonl":
        _rewrite_ledger(file, fresh, namespace, document_id)
    else:
        _rewrite_dead_letter(file, fresh, namespace, document_id)
    with fresh.open("rb") as written:
        os.fsync(written.fileno())
    os.utime(fresh, ns=(times.st_atime_ns, times.st_mtime_ns))  # ledgers are kept by their age
    fresh.replace(file)
    if file.suffix == ".parquet" and not pq.read_metadata(file).num_rows:
        file.unlink()


def _rewrite_ledger(file: Path, fresh: Path, namespace: str, document_id: str | None) -> None:
    with fresh.open("wb") as out:
        for entry in read_entries(file):
            values = entry.values
            if "rejected" in values:
                values = {**values, "rejected": _others(values, namespace, document_id)}
            out.write(json.dumps(values, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")


def _rewrite_dead_letter(file: Path, fresh: Path, namespace: str, document_id: str | None) -> None:
    with pq.ParquetWriter(fresh, REJECTED) as out:
        for rows in _rows(file):
            kept = _kept(rows, namespace, document_id)
            out.write_batch(pa.RecordBatch.from_pylist(kept, schema=REJECTED))


def _rejected(values: dict[str, Any]) -> list[dict[str, Any]]:
    return list(values.get("rejected", []))


def _others(values: dict[str, Any], namespace: str, document_id: str | None) -> list[dict[str, Any]]:
    return _kept(_rejected(values), namespace, document_id)


def _kept(rows: list[dict[str, Any]], namespace: str, document_id: str | None) -> list[dict[str, Any]]:
    """The rows about others. One that does not say its namespace is taken for the document whose id it has."""

    def about(row: dict[str, Any]) -> bool:
        if document_id is None:
            return row.get("namespace") == namespace
        return row["document_id"] == document_id and row.get("namespace") in (namespace, None)

    return [row for row in rows if not about(row)]


def _rows(file: Path) -> Iterator[list[dict[str, Any]]]:
    try:
        with pq.ParquetFile(file) as rejected:
            for batch in rejected.iter_batches(10_000):
                yield batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(
            f"the list of rejected documents {file} cannot be read: {error}",
            "A readable file, to see whom it names",
            "Delete it, and forget again",
        ) from error
