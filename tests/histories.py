"""Random histories of a source, indexed through the real sieve and writers, with crashes; and what must come of them.

A document's text is a few words, each a chunk. The oracle knows only the rules of the README, not the protocol.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from qdrant_client import models

from pipeline.config import StoreConfig
from pipeline.errors import StoreUnavailable
from pipeline.lane.sieve import Sieve
from pipeline.lane.windows import Window
from pipeline.lane.writing import SplitWriter
from pipeline.schemas import CHUNKS, DOCUMENTS, Counts, DocumentBatch, Split, digest, point_id
from pipeline.stores import Store

KEYS = [("", "a"), ("", "b"), ("t", "a"), ("t", "c"), ("", 'x",1')]
SPLIT = Split("s", "u", "parquet", 0, 1, 0, None)
VERSION = "v" * 8


@dataclass(frozen=True)
class Row:
    """A row of a source: what a document should be from now on."""

    key: tuple[str, str]
    words: tuple[str, ...]  # () is a delete
    year: int
    sequence: int = 0


@dataclass(frozen=True)
class Run:
    """A source as it is at one time, cut into windows of so many chunks, and when the run of it crashes."""

    rows: tuple[Row, ...]
    window: int
    batch_points: int
    crash: int | None  # the number of the store's change at which it dies
    whole: bool  # whether that change is applied before it dies, or half of it


words = st.lists(st.sampled_from(["river", "stone", "light"]), max_size=6).map(tuple)


def _run(sequences: st.SearchStrategy[int]) -> st.SearchStrategy[Run]:
    row = st.builds(Row, st.sampled_from(KEYS), words, st.integers(1, 2), sequences)
    rows = st.lists(row, max_size=5, unique_by=lambda row: row.key).map(tuple)
    crash = st.none() | st.integers(0, 14)
    return st.builds(Run, rows, st.integers(1, 9), st.integers(1, 4), crash, st.booleans())


HISTORIES = st.lists(_run(st.just(0)), min_size=1, max_size=6)
SEQUENCED = st.lists(_run(st.integers(0, 4)), min_size=1, max_size=6)


class Crashing:
    """A store that dies at its k-th change, after it or in the middle of it."""

    def __init__(self, store: Store, crash: int | None, whole: bool) -> None:
        self._store, self._crash, self._whole = store, crash, whole
        self.changes = 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)
        if name not in ("upsert", "delete", "set_payload", "overwrite_payloads"):
            return call

        def change(collection: str, *arguments: Any, **keywords: Any) -> None:
            self.changes += 1
            if self._crash is None or self.changes <= self._crash:
                return call(collection, *arguments, **keywords)
            if self.changes == self._crash + 1:
                self._apply(name, call, collection, arguments, keywords)
            raise StoreUnavailable("crashed")  # and nothing gets through any more

        return change

    def _apply(self, name: str, call: Any, collection: str, arguments: Any, keywords: Any) -> None:
        if self._whole:
            call(collection, *arguments, **keywords)
        elif name == "upsert":
            call(collection, arguments[0].slice(0, len(arguments[0]) // 2), *arguments[1:])
        elif name == "delete":
            call(collection, arguments[0][: len(arguments[0]) // 2])
        elif name == "set_payload":
            call(collection, arguments[0], arguments[1][: len(arguments[1]) // 2], **keywords)
        else:
            half = len(arguments[0]) // 2
            call(collection, arguments[0][:half], arguments[1][:half])


def new_collection(store: Store) -> None:
    store.create_collection("c", models.VectorParams(size=4, distance=models.Distance.DOT))


def index(store: Any, run: Run) -> Counts:
    """Index a run's rows as a lane does, without threads and with one word a chunk."""
    total = Counts()
    writer = SplitWriter(SPLIT, store, "c", StoreConfig(batch_points=run.batch_points), VERSION)
    batch = pa.RecordBatch.from_pylist(
        [_document(n, row) for n, row in enumerate(run.rows)], schema=DOCUMENTS
    )
    window, documents = Sieve(store, "c", VERSION).sift(DocumentBatch(batch))
    counts, _ = writer.write(window, np.zeros((0, 4), np.float32))
    total += counts
    chunks = [chunk for row in documents.to_pylist() for chunk in _chunks(row)]
    for start in range(0, len(chunks), run.window):
        some = chunks[start : start + run.window]
        vectors = np.stack([vector(chunk["text"]) for chunk in some])
        counts, _ = writer.write(Window(pa.RecordBatch.from_pylist(some, schema=CHUNKS)), vectors)
        total += counts
    total.verify()
    return total


class Oracle:
    """What the store must hold, by the rules alone: the newest sequence wins, a delete deletes, the rest is kept."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str], Row] = {}

    def apply(self, run: Run) -> Counts:
        """Take a run's rows over; what became of them."""
        counts = Counts(read=len(run.rows))
        for row in run.rows:
            counts += self._apply(row)
        return counts

    def _apply(self, row: Row) -> Counts:
        before = self.documents.get(row.key)
        if before is not None and row.sequence < before.sequence:
            return Counts(stale=1)
        if not row.words:
            self.documents.pop(row.key, None)
            return Counts(deleted=1)
        self.documents[row.key] = row
        if before == row:
            return Counts(unchanged=1)
        return Counts(patched=1) if before and before.words == row.words else Counts(indexed=1)

    def points(self) -> dict[str, tuple[dict[str, Any], list[float]]]:
        """Point id -> (payload, vector)."""
        found = {}
        for key, row in self.documents.items():
            text = " ".join(row.words)
            at = 0
            for n, word in enumerate(row.words):
                ours = {
                    "document_id": key[1],
                    "namespace": key[0],
                    "chunk_index": n,
                    "chunk_count": len(row.words),
                    "start": at,
                    "end": at + len(word),
                    "sequence": row.sequence,
                    "encoder_version": VERSION,
                }
                if n == 0:
                    ours["text_hash"] = digest(text)
                    ours["metadata_hash"] = digest(json.dumps({"year": row.year}))
                payload = {"text": word, "metadata": {"year": row.year}, "headwater": ours}
                found[point_id(*key, n)] = (payload, vector(word).tolist())
                at += len(word) + 1
        return found


def contents(store: Store) -> dict[str, tuple[dict[str, Any], list[float]]]:
    found, offset = store.scroll("c", limit=1000, with_vectors=True)
    assert offset is None
    return {str(record.id): (record.payload, record.vector) for record in found}


def check(store: Store, history: list[Run]) -> int:
    """Go through a history, crashes and all; each crashed run is run again. Returns how many runs crashed."""
    oracle, crashed = Oracle(), 0
    for run in history:
        wanted = oracle.apply(run)
        try:
            counts = index(Crashing(store, run.crash, run.whole), run)
            assert {name: getattr(counts, name) for name in _OUTCOMES} == {
                name: getattr(wanted, name) for name in _OUTCOMES
            }
        except StoreUnavailable:
            crashed += 1
            index(store, run)
        assert contents(store) == oracle.points()
    return crashed


_OUTCOMES = ("read", "indexed", "unchanged", "patched", "deleted", "stale", "rejected")


def vector(word: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(len(word) * 100 + ord(word[0])).random(4).astype(np.float32)


def _document(number: int, row: Row) -> dict[str, Any]:
    return {
        "document_id": row.key[1],
        "namespace": row.key[0],
        "text": " ".join(row.words),
        "metadata": json.dumps({"year": row.year}),
        "sequence": row.sequence,
        "operation": "upsert" if row.words else "delete",
        "row": number,
    }


def _chunks(row: dict[str, Any]) -> list[dict[str, Any]]:
    words = row["text"].split()
    starts = np.cumsum([0, *(len(word) + 1 for word in words)]).tolist()
    return [
        {
            **{name: row[name] for name in ("document_id", "namespace", "metadata", "sequence", "row")},
            "point_id": point_id(row["namespace"], row["document_id"], n),
            "chunk_index": n,
            "chunk_count": len(words),
            "text": word,
            "start": starts[n],
            "end": starts[n] + len(word),
            "token_ids": [1],
            "text_hash": digest(row["text"]),
        }
        for n, word in enumerate(words)
    ]
