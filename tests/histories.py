"""Random histories of a source, indexed through the real sieve and writers, with crashes; and what must come of them.

A document's text is a few words, each a chunk; a version that is to be rejected has its fate for a first word. The
oracle knows only the rules of the README, not the protocol.
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
from pipeline.errors import PointTooLarge, StoreUnavailable
from pipeline.lane.sieve import Sieve
from pipeline.lane.windows import NO_CHUNKS, Window
from pipeline.lane.writing import SplitWriter
from pipeline.schemas import CHUNKS, DOCUMENTS, Counts, DocumentBatch, Rejected, Split, digest, point_id
from pipeline.stores import Store, Tombstones

KEYS = [("", "a"), ("", "b"), ("t", "a"), ("t", "c"), ("", 'x",1')]
SPLIT = Split("s", "u", "parquet", 0, 1, 0, None)
VERSION = "v" * 8


@dataclass(frozen=True)
class Row:
    """A row of a source: what a document should be from now on."""

    key: tuple[str, str]
    words: tuple[str, ...]  # () is a delete, if it is not to be rejected
    year: int
    sequence: int = 0
    fate: str = ""  # why it is rejected: one of FATES

    @property
    def text(self) -> tuple[str, ...]:
        return (self.fate, *self.words) if self.fate else self.words


@dataclass(frozen=True)
class Run:
    """A source as it is at one time, cut into windows of so many chunks, and when the run of it crashes."""

    rows: tuple[Row, ...]
    window: int
    batch_points: int
    crash: int | None  # the number of the store's change at which it dies
    whole: bool  # whether that change is applied before it dies, or half of it


words = st.lists(st.sampled_from(["river", "stone", "light"]), max_size=6).map(tuple)


FATES = ("empty_text", "unsplittable", "unusable_vector", "too_large")  # found ever later on a version's way


def _run(
    sequences: st.SearchStrategy[int], fates: st.SearchStrategy[str] = st.just("")
) -> st.SearchStrategy[Run]:
    row = st.builds(Row, st.sampled_from(KEYS), words, st.integers(1, 2), sequences, fates)
    rows = st.lists(row, max_size=5, unique_by=lambda row: row.key).map(tuple)
    crash = st.none() | st.integers(0, 14)
    return st.builds(Run, rows, st.integers(1, 9), st.integers(1, 4), crash, st.booleans())


HISTORIES = st.lists(_run(st.just(0)), min_size=1, max_size=6)
SEQUENCED = st.lists(_run(st.integers(0, 4)), min_size=1, max_size=6)
some_rejected = st.sampled_from(("",) * 8 + FATES)
REJECTING = st.lists(_run(st.integers(0, 4), some_rejected), min_size=1, max_size=6)


class Crashing:
    """A store that dies at its k-th change, after it or in the middle of it; and that finds some points too large."""

    def __init__(self, store: Store, crash: int | None, whole: bool) -> None:
        self._store, self._crash, self._whole = store, crash, whole
        self.changes = 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)
        if name not in ("upsert", "delete", "set_payload", "overwrite_payloads", "create_collection"):
            return call

        def change(collection: str, *arguments: Any, **keywords: Any) -> None:
            self.changes += 1
            if name == "upsert":
                _check_sizes(arguments[0])
            if self._crash is None or self.changes <= self._crash:
                return call(collection, *arguments, **keywords)
            if self.changes == self._crash + 1:
                self._apply(name, call, collection, arguments, keywords)
            raise StoreUnavailable("crashed")  # and nothing gets through any more

        return change

    def _apply(self, name: str, call: Any, collection: str, arguments: Any, keywords: Any) -> None:
        if self._whole:
            call(collection, *arguments, **keywords)
        elif name == "create_collection":
            pass
        elif name == "upsert":
            call(collection, arguments[0].slice(0, len(arguments[0]) // 2), *arguments[1:])
        elif name == "delete":
            call(collection, arguments[0][: len(arguments[0]) // 2])
        elif name == "set_payload":
            call(collection, arguments[0], arguments[1][: len(arguments[1]) // 2], **keywords)
        else:
            half = len(arguments[0]) // 2
            call(collection, arguments[0][:half], arguments[1][:half])

    def too_large(self, collection: str, points: Any) -> list[str]:
        return _too_large(points)


def _too_large(points: Any) -> list[str]:
    payloads = zip(points.ids, points.payloads, strict=True)
    return [id for id, payload in payloads if payload.get("text") == "too_large"]


def _check_sizes(points: Any) -> None:
    for id in _too_large(points):
        raise PointTooLarge("too much", "Less", "Cut it", id)


def new_collection(store: Store) -> None:
    store.create_collection("c", models.VectorParams(size=4, distance=models.Distance.DOT))


def index(store: Any, run: Run, sequenced: bool = False) -> Counts:
    """Index a run's rows as a lane does, without threads and with one word a chunk."""
    total = Counts()
    writer = SplitWriter(SPLIT, store, "c", StoreConfig(batch_points=run.batch_points), VERSION, {"": 4})
    sieve = Sieve(store, "c", VERSION, Tombstones(store, "c") if sequenced else None)
    good = [_document(n, row) for n, row in enumerate(run.rows) if row.fate != "empty_text"]
    bad = [_rejected(n, row) for n, row in enumerate(run.rows) if row.fate == "empty_text"]
    batch = DocumentBatch(pa.RecordBatch.from_pylist(good, schema=DOCUMENTS), tuple(bad))
    window, documents = sieve.sift(batch)
    counts, _ = writer.write(window, np.zeros((0, 4), np.float32))
    total += counts
    chunks = []
    for row in documents.to_pylist():
        if run.rows[row["row"]].fate == "unsplittable":
            rejected = (_rejected(row["row"], run.rows[row["row"]]),)
            counts, _ = writer.write(Window(NO_CHUNKS, rejected=rejected), np.zeros((0, 4), np.float32))
            total += counts
        else:
            chunks += _chunks(row)
    for start in range(0, len(chunks), run.window):
        some = chunks[start : start + run.window]
        vectors = np.stack([vector(chunk["text"]) for chunk in some])
        counts, _ = writer.write(Window(pa.RecordBatch.from_pylist(some, schema=CHUNKS)), vectors)
        total += counts
    total.verify()
    return total


class Oracle:
    """What the store must hold, by the rules alone: the newest sequence wins, a delete deletes, the rest is kept.

    Where versions have sequences a deletion is one of them. A version that is rejected leaves the one before, flagged.
    """

    def __init__(self, sequenced: bool = False) -> None:
        self.documents: dict[tuple[str, str], Row] = {}
        self.flags: dict[tuple[str, str], str] = {}
        self.deleted: dict[tuple[str, str], int] = {}
        self._sequenced = sequenced

    def apply(self, run: Run) -> Counts:
        """Take a run's rows over; what became of them."""
        counts = Counts(read=len(run.rows))
        for row in run.rows:
            counts += self._apply(row)
        return counts

    def _apply(self, row: Row) -> Counts:
        before = self.documents.get(row.key)
        known = [before.sequence] if before else []
        stale = any(row.sequence < sequence for sequence in (*known, self.deleted.get(row.key, 0)))
        if row.fate and before and row.sequence >= before.sequence:
            self.flags[row.key] = row.fate
        if row.fate:
            return Counts(stale=1) if stale and row.fate != "empty_text" else Counts(rejected=1)
        if stale:
            return Counts(stale=1)
        flagged = self.flags.pop(row.key, None)
        self.deleted.pop(row.key, None)
        if not row.words:
            self.documents.pop(row.key, None)
            if self._sequenced:
                self.deleted[row.key] = row.sequence
            return Counts(deleted=1)
        self.documents[row.key] = row
        if before == row and not flagged:
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
                    if key in self.flags:
                        ours["rejected"] = self.flags[key]
                payload = {"text": word, "metadata": {"year": row.year}, "headwater": ours}
                found[point_id(*key, n)] = (payload, vector(word).tolist())
                at += len(word) + 1
        return found


def contents(store: Store) -> dict[str, tuple[dict[str, Any], list[float]]]:
    found, offset = store.scroll("c", limit=1000, with_vectors=True)
    assert offset is None
    return {str(record.id): (record.payload, record.vector) for record in found}


def tombstones(store: Store) -> dict[tuple[str, str], int]:
    """The sequences of deletions that the store knows, by document."""
    name = Tombstones(store, "c").name
    found = store.scroll(name, limit=1000)[0] if store.collection_exists(name) else []
    payloads = [record.payload for record in found]
    return {(one["namespace"], one["document_id"]): one["sequence"] for one in payloads}


def check(store: Store, history: list[Run], sequenced: bool = False) -> int:
    """Go through a history, crashes and all; each crashed run is run again. Returns how many runs crashed."""
    oracle, crashed = Oracle(sequenced), 0
    for run in history:
        wanted = oracle.apply(run)
        try:
            counts = index(Crashing(store, run.crash, run.whole), run, sequenced)
            assert {name: getattr(counts, name) for name in _OUTCOMES} == {
                name: getattr(wanted, name) for name in _OUTCOMES
            }
        except StoreUnavailable:
            crashed += 1
            index(Crashing(store, None, True), run, sequenced)
        assert contents(store) == oracle.points()
        assert tombstones(store) == oracle.deleted
    return crashed


_OUTCOMES = ("read", "indexed", "unchanged", "patched", "deleted", "stale", "rejected")


def vector(word: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    if word == "unusable_vector":
        return np.zeros(4, np.float32)
    return np.random.default_rng(len(word) * 100 + ord(word[0])).random(4).astype(np.float32)


def _document(number: int, row: Row) -> dict[str, Any]:
    return {
        "document_id": row.key[1],
        "namespace": row.key[0],
        "text": " ".join(row.text),
        "metadata": json.dumps({"year": row.year}),
        "sequence": row.sequence,
        "operation": "upsert" if row.text else "delete",
        "row": number,
    }


def _rejected(number: int, row: Row) -> Rejected:
    return Rejected(row.key[1], "u", number, "source", row.fate, "…", row.key[0], row.sequence)


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
