"""The audit: is the collection what the source says? And its repair.

Both sides are dealt out to files by a hash of their document, and compared file by file: memory holds about a 256th of
them. Nothing that a run remembers is believed: texts and metadata are read and hashed anew, chunks are counted.
"""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Settings, SourceConfig
from pipeline.encoders import prepare_encoder
from pipeline.errors import DeletesRefused, SourceError, StoreError, UsageError
from pipeline.ingest import RUN_KEY, Executor, ingest
from pipeline.job import check_collection, check_target, make_chunker, make_contract
from pipeline.schemas import Observer, Progress, digest, point_id
from pipeline.snapshot import present_ids, scope
from pipeline.sources import Source, open_source, read_split
from pipeline.stores import (
    Head,
    Purpose,
    Store,
    Suppressions,
    Tombstones,
    collection,
    hold_lease,
    open_store,
    scan_points,
    store_exists,
)
from pipeline.stores.heads import WRITING
from pipeline.stores.profiles import OURS
from pipeline.sync import COUNT, KEY, KEYS, Buckets, ids_of, key_of, keys_of
from pipeline.versions import Contract

DIFFERENT = 4  # the exit code where source and store differ

_VERSION = [("text", KEY), ("metadata", KEY), ("sequence", np.int64)]
DOCUMENT = np.dtype([("key", KEY), *_VERSION])
HEAD = np.dtype([("key", KEY), *_VERSION, ("count", np.int64), ("good", np.bool_)])
POINT = np.dtype([("key", KEY), ("id", KEY), ("index", np.int64)])
"""`key` is the id of the document's head, `id` the point's own; `index` is -1 where that is not its chunk's."""

_AT_ONCE = 1000


@dataclass(frozen=True)
class Audit:
    """How source and store differ.

    Documents: `missing` are not stored; `stale` are stored, but not as the source has them, not by an encoder that the
    collection's contract names, or not whole; `kept_after_rejection` are stored in the version before the one that the
    source step rejects, which is as it should be. Points: `surplus` are of documents that the source does not have,
    `orphaned` of no document that is stored, or beyond its end. `foreign` points are not ours, and left alone.
    """

    missing: int = 0
    stale: int = 0
    kept_after_rejection: int = 0
    surplus: int = 0
    orphaned: int = 0
    documents: int = 0  # that the source has and does not reject
    stored: int = 0  # documents in the store
    points: int = 0  # points in the store
    foreign: int = 0

    def __add__(self, other: Audit) -> Audit:
        return Audit(
            *(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    @property
    def clean(self) -> bool:
        """Whether there is nothing to repair."""
        return not (self.missing or self.stale or self.surplus or self.orphaned)

    @property
    def exit_code(self) -> int:
        """0 clean, 4 different."""
        return 0 if self.clean else DIFFERENT

    def as_dict(self) -> dict[str, int]:
        """The audit as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """What is wrong with the documents of one bucket.

    `orphans` are ids of points; `torn` are ids of heads that vouch for chunks which are not there.
    """

    audit: Audit
    orphans: list[str]
    torn: list[str]


def audit(uri: str, settings: Settings, observe: Observer = lambda _: None) -> Audit:
    """Compare a source with its collection and change nothing; while a run writes to it, what differs is its work.

    Raises SourceError where a part of the source cannot be read, StoreError where there is no collection.
    """
    check_target(settings)
    if not store_exists(settings.store):
        raise _nothing(settings)
    with (
        tempfile.TemporaryDirectory(prefix="headwater-") as scratch,
        closing(open_store(settings.store, Purpose.AUDIT)) as store,
    ):
        return sum((found.audit for found in _examine(uri, settings, store, Path(scratch), observe)), Audit())


def repair(
    uri: str,
    settings: Settings,
    executor: Callable[[], Executor],
    stop: threading.Event,
    observe: Observer = lambda _: None,
) -> tuple[Audit, Audit]:
    """Make the collection what the source says and return what was found, and what is left.

    Touches only what is wrong: orphans are deleted and torn documents marked, then a snapshot run indexes what is
    missing or stale and removes what is surplus, within `source.max_deletes`. A crash at any moment leaves less to
    repair. Raises CollectionHeld where a run is at work, DeletesRefused where too many documents are surplus.
    """
    check_target(settings)
    if uri == "-":
        raise UsageError(
            "a repair of standard input", "A source that can be read twice", "Write it to a file"
        )
    found = _mend(uri, settings, stop, observe)
    if found.clean or stop.is_set():
        return found, found
    changes = {"source": {"snapshot": True}, "run": {"id": ""}}  # a name that is finished would do nothing
    fresh = settings.model_copy(
        update={name: getattr(settings, name).model_copy(update=values) for name, values in changes.items()}
    )
    summary = ingest(uri, fresh, executor(), stop, observe)
    if summary.refused:
        raise DeletesRefused(summary.refused)
    return found, audit(uri, settings, observe)


def _mend(uri: str, settings: Settings, stop: threading.Event, observe: Observer) -> Audit:
    """Delete orphans and mark torn documents, which no run would find, and see to it that no run is resumed."""
    if not store_exists(settings.store):
        raise _nothing(settings)
    observe(Progress("preparing the encoder"))
    spec, tokenizer = prepare_encoder(settings.encoder)
    contract = make_contract(settings, spec, make_chunker(settings, spec, tokenizer).version)
    name = settings.store.collection
    total = Audit()
    with (
        tempfile.TemporaryDirectory(prefix="headwater-") as scratch,
        closing(open_store(settings.store, Purpose.REPAIR)) as store,
        hold_lease(store, name, "", settings.run.lease_s, stop) as lease,
    ):
        physical = check_collection(store, settings, contract)
        if physical is None:
            raise _nothing(settings)
        for found in _examine(uri, settings, store, Path(scratch), observe):
            if stop.is_set():
                break
            if lease:
                lease.check()
            for ids in _batches(found.orphans):
                store.delete(physical, ids)
            for ids in _batches(found.torn):
                store.set_payload(physical, {WRITING: True}, ids, key=OURS)
            total += found.audit
        if not total.clean:
            store.update_collection(physical, metadata={RUN_KEY: f"repair-{uuid.uuid4().hex[:12]}"})
            store.flush()
        if lease:
            lease.check()
    return total


def _examine(
    uri: str, settings: Settings, store: Store, scratch: Path, observe: Observer
) -> Iterator[Finding]:
    """Read both sides, write up to 120 bytes for each document and 40 for each point to `scratch`, and compare."""
    observe(Progress("reading the source"))
    source = open_source(uri, settings.source, scratch)
    if source.unreadable:
        raise SourceError(
            f"{len(source.unreadable)} files cannot be read, the first: {source.unreadable[0].message}",
            "The whole source",
            "Repair or remove them, and run again",
        )
    name = settings.store.collection
    physical = collection.resolve(store, name)
    if physical is None:
        raise _nothing(settings)
    allowed = Contract.read(collection.read_metadata(store, physical), name).encoder_versions
    present, documents = Buckets(scratch / "present", KEYS), Buckets(scratch / "documents", DOCUMENT)
    forgotten = Suppressions(store, name)
    for ids in present_ids(source, settings.source, forgotten):
        present.add(keys_of(ids))
    deleted = Tombstones(store, physical) if settings.source.sequence else None
    for rows in _read_documents(source, settings.source, forgotten, deleted, observe):
        documents.add(rows)
    heads, points = Buckets(scratch / "heads", HEAD), Buckets(scratch / "points", POINT)
    foreign = 0
    for page in scan_points(store, physical, scope(settings.source)):
        foreign += _deal(page, allowed, heads, points)
        observe(Progress("reading the store", len(points)))
    yield Finding(Audit(foreign=foreign), [], [])
    for number in range(COUNT):
        yield compare(*(side.read(number) for side in (present, documents, heads, points)))


def _deal(
    page: list[tuple[str, dict[str, Any]]], allowed: frozenset[str], heads: Buckets, points: Buckets
) -> int:
    """Add a page of points, and the heads among them, to their buckets; returns how many points are not ours."""
    ours = [(id, payload[OURS]) for id, payload in page if OURS in payload]
    placed = [_point(id, fields) for id, fields in ours]
    points.add(np.array(placed, POINT))
    found = [
        _head(id, fields, allowed)
        for (id, fields), (*_, index) in zip(ours, placed, strict=True)
        if not index
    ]
    heads.add(np.array(found, HEAD))
    return len(page) - len(ours)


def compare(
    present: NDArray[Any], documents: NDArray[Any], heads: NDArray[Any], points: NDArray[Any]
) -> Finding:
    """Compare what one bucket holds of each: KEYS, DOCUMENT (a subset), HEAD and POINT, in any order.

    A stored document with a higher sequence than the source's is newer, and not stale if it is whole.
    """
    heads = heads[np.argsort(heads["key"])]
    at, owned = _find(points["key"], heads["key"])
    index = points["index"]
    orphaned = ~owned
    orphaned[owned] = (index[owned] < 0) | (index[owned] >= heads["count"][at[owned]])
    chunks = np.bincount(at[~orphaned], minlength=len(heads))
    torn = chunks != heads["count"]
    bad = torn | ~heads["good"]
    in_source = np.isin(heads["key"], present["key"])
    at, stored = _find(documents["key"], heads["key"])
    mine, its = documents[stored], heads[at[stored]]
    differs = (mine["text"] != its["text"]) | (mine["metadata"] != its["metadata"])
    differs |= mine["sequence"] != its["sequence"]
    stale = bad[at[stored]] | (differs & (its["sequence"] <= mine["sequence"]))
    read = np.zeros(len(heads), np.bool_)
    read[at[stored]] = True
    kept = in_source & ~read
    return Finding(
        Audit(
            missing=int(np.count_nonzero(~stored)),
            stale=int(np.count_nonzero(stale) + np.count_nonzero(kept & bad)),
            kept_after_rejection=int(np.count_nonzero(kept & ~bad)),
            surplus=int(chunks[~in_source].sum()),
            orphaned=int(np.count_nonzero(orphaned)),
            documents=len(documents),
            stored=len(heads),
            points=len(points),
        ),
        orphans=ids_of(points["id"][orphaned]),
        torn=ids_of(heads["key"][torn & in_source]),
    )


def _find(keys: NDArray[Any], among: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where each key is in the sorted `among`, and whether it is there."""
    at = np.searchsorted(among, keys).astype(np.int64)
    at[at == len(among)] = 0
    found = among[at] == keys if len(among) else np.zeros(len(keys), np.bool_)
    return at, np.asarray(found, np.bool_)


def _read_documents(
    source: Source,
    config: SourceConfig,
    forgotten: Suppressions,
    deleted: Tombstones | None,
    observe: Observer,
) -> Iterator[NDArray[Any]]:
    """DOCUMENT[n] of what the source has and does not reject, and what was neither forgotten nor deleted since."""
    read = 0
    for split in source.splits:
        for batch in read_split(split, config):
            rows = [row for row in batch.documents.to_pylist() if row["operation"] != "delete"]
            keys = [(row["namespace"], row["document_id"]) for row in rows]
            gone = forgotten.find(keys)
            later = deleted.find(keys) if deleted else {}
            wanted = [
                _document(row)
                for key, row in zip(keys, rows, strict=True)
                if key not in gone and row["sequence"] >= later.get(key, row["sequence"])
            ]
            yield np.array(wanted, DOCUMENT)
            read += batch.documents.num_rows + len(batch.rejected)
            observe(Progress("hashing the source", read, source.rows))


def _document(row: dict[str, Any]) -> tuple[bytes, bytes, bytes, int]:
    key = key_of(point_id(row["namespace"], row["document_id"], 0))
    return key, _hash(digest(row["text"])), _hash(digest(row["metadata"])), row["sequence"]


def _head(
    id: str, ours: dict[str, Any], allowed: frozenset[str]
) -> tuple[bytes, bytes, bytes, int, int, bool]:
    head = Head.read({OURS: ours})
    good = head.encoder_version in allowed and not head.writing
    text, metadata = _hash(head.text_hash), _hash(head.metadata_hash)
    return key_of(id), text, metadata, head.sequence, head.chunk_count, good


def _point(id: str, ours: dict[str, Any]) -> tuple[bytes, bytes, int]:
    document, index = (ours["namespace"], ours["document_id"]), ours["chunk_index"]
    head = point_id(*document, 0)
    own = point_id(*document, index) if index else head
    return key_of(head), key_of(id), index if id == own else -1


def _hash(text: str) -> bytes:
    return bytes.fromhex(text)


def _batches(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _AT_ONCE):
        yield ids[start : start + _AT_ONCE]


def _nothing(settings: Settings) -> StoreError:
    return StoreError(
        f"{settings.store.url} holds no collection {settings.store.collection!r}",
        "A collection to compare with the source",
        "Run headwater ingest first, or check --store and --collection",
    )
