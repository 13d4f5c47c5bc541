"""Rows of one source with the same document: the highest sequence wins, among equals the last row.

Keys are hashed to 128 bits and kept on disk; memory holds half a million of them at a time, however many
there are. Where there are more, they are dealt out by their first byte to files that are looked at one by
one, those that are still too large by their second, and so on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.sources.keys import Keys

RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("sequence", "<i8"), ("position", "<i8")])
Records = np.ndarray[tuple[int], np.dtype[Any]]  # of RECORD

_DIGEST_BYTES = 16
_RECORDS_IN_MEMORY = 1 << 19


def key_records(keys: Keys, good: NDArray[np.bool_], position: int) -> Records:
    """RECORD[m]: the good rows' keys; `position` is the number of the first row in the whole source."""
    chosen = pa.array(good)
    namespaces = keys.namespaces.filter(chosen).cast(pa.binary()).to_numpy(zero_copy_only=False)
    ids = keys.ids.filter(chosen).cast(pa.binary()).to_numpy(zero_copy_only=False)
    digests = b"".join(
        hashlib.blake2b(b"%d:%b%b" % (len(name), name, id_), digest_size=_DIGEST_BYTES).digest()
        for name, id_ in zip(namespaces, ids, strict=True)
    )
    records = np.empty(len(ids), RECORD)
    halves = np.frombuffer(digests, "<u8").reshape(-1, 2)
    records["high"], records["low"] = halves[:, 0], halves[:, 1]
    records["sequence"] = keys.sequences[good]
    records["position"] = position + np.flatnonzero(good)
    return records


def losers(file: Path, limit: int = _RECORDS_IN_MEMORY, depth: int = 0) -> Iterator[NDArray[np.int64]]:
    """Positions of the rows that lose against another one, in no order, each once.

    `file` holds RECORDs and is deleted; at most `limit` of them are in memory at a time.
    """
    if file.stat().st_size <= limit * RECORD.itemsize or depth == _DIGEST_BYTES:
        records = np.fromfile(file, RECORD)
        file.unlink()
        yield _resolve(records)[1]
        return
    parts: set[Path] = set()
    with file.open("rb") as source:
        while len(chunk := np.fromfile(source, RECORD, limit)):
            winners, lost = _resolve(chunk)  # who loses here loses anyway; many rows of one id shrink to one
            yield lost
            parts |= _deal(winners, file, depth)
    file.unlink()
    for part in sorted(parts):
        yield from losers(part, limit, depth + 1)


def _resolve(records: Records) -> tuple[Records, NDArray[np.int64]]:
    """The record that wins for each key, and the positions of the others."""
    order = np.lexsort((records["position"], records["sequence"], records["low"], records["high"]))
    ranked = records[order]
    wins = np.ones(len(ranked), np.bool_)
    wins[:-1] = (ranked["high"][1:] != ranked["high"][:-1]) | (ranked["low"][1:] != ranked["low"][:-1])
    return ranked[wins], ranked["position"][~wins]


def _deal(records: Records, file: Path, depth: int) -> set[Path]:
    """Append each record to the file of its digest's byte number `depth`."""
    digits = records.view(np.uint8).reshape(-1, RECORD.itemsize)[:, depth]
    order = np.argsort(digits, kind="stable")
    values, starts = np.unique(digits[order], return_index=True)
    parts = set()
    for value, group in zip(values.tolist(), np.split(records[order], starts[1:]), strict=True):
        part = file.with_name(f"{file.name}{value:02x}")
        with part.open("ab") as out:
            group.tofile(out)
        parts.add(part)
    return parts
