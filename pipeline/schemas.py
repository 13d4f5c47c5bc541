"""What crosses a stage's boundary: Arrow schemas on the data plane, small frozen dataclasses on the control plane."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa

from pipeline.errors import BrokenInvariant


def _required(**columns: pa.DataType) -> pa.Schema:
    """A schema of columns without nulls."""
    fields: list[pa.Field[Any]] = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
    return pa.schema(fields)


DOCUMENTS = _required(
    document_id=pa.string(),
    namespace=pa.string(),
    text=pa.string(),
    metadata=pa.string(),  # a JSON object, types kept
    sequence=pa.int64(),  # 0 where the source has none
    operation=pa.string(),  # "upsert" or "delete"
    row=pa.int64(),  # the row's number in its file or stream
)

CHUNKS = _required(
    point_id=pa.string(),
    document_id=pa.string(),
    namespace=pa.string(),
    chunk_index=pa.int32(),
    chunk_count=pa.int32(),
    text=pa.string(),
    start=pa.int64(),  # code points into the document's text
    end=pa.int64(),
    token_ids=pa.list_(pa.int32()),  # as the encoder takes them, specials included
    text_hash=pa.string(),  # of the whole document
    metadata=pa.string(),
    sequence=pa.int64(),
    row=pa.int64(),
)


def check(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the batch if it has exactly this schema and no nulls; raise BrokenInvariant otherwise.

    pyarrow does not enforce `nullable=False`, so nulls are counted here.
    """
    if not batch.schema.equals(schema):
        raise BrokenInvariant(f"a batch with schema {batch.schema}", f"The stage takes {schema}")
    for column, name in zip(batch.columns, batch.schema.names, strict=True):
        if column.null_count:
            raise BrokenInvariant(
                f"column {name!r} with {column.null_count} nulls", "A stage's columns have no nulls"
            )
    return batch


def point_id(namespace: str, document_id: str, chunk_index: int) -> str:
    """The id of a chunk's point: UUIDv5 under NAMESPACE_URL of compact JSON, the same in every run and order."""
    key = json.dumps([namespace, document_id, chunk_index], ensure_ascii=False, separators=(",", ":"))
    return str(uuid.uuid5(uuid.NAMESPACE_URL, key))


def digest(text: str) -> str:
    """The hash by which texts and metadata are compared: 128 bits of BLAKE2b, hexadecimal."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Split:
    """A deterministic piece of a source: the unit of scheduling, retry, back-pressure and checkpoint.

    `part` counts row groups (Parquet) or record batches (IPC files) as [start, stop); a stream is one part.
    `superseded` holds the row numbers that lost to a later row of the same document id; they are rejected.
    `partitions` are columns with one value in every row, taken from the path (`lang=en/`).

    `piece` narrows the split to the rows [start, stop) of its file, numbered as ever. Where `poison` says why lanes
    died on them, they are rejected with that message, and nothing but their keys is read.
    """

    id: str
    uri: str
    format: str
    start: int
    stop: int
    first_row: int
    rows: int | None  # None where only reading tells
    superseded: tuple[int, ...] = ()
    partitions: tuple[tuple[str, int | str | None], ...] = ()
    piece: tuple[int, int] | None = None
    poison: str = ""


@dataclass(frozen=True)
class Unreadable:
    """A file or split of the source that could not be read to its end; the rest is, and the run ends as failed."""

    uri: str
    message: str


@dataclass(frozen=True)
class Rejected:
    """A document that is not indexed, and why; it goes to the dead-letter file.

    `reason` is one of a small fixed set (`empty_text`, `null_id`, `duplicate`, …), `message` says it in full.
    `namespace` and `sequence` are None where they are not known.
    """

    document_id: str | None
    uri: str
    row: int
    stage: str
    reason: str
    message: str
    namespace: str | None = None
    sequence: int | None = None


@dataclass(frozen=True)
class DocumentBatch:
    """Rows read: those that are documents (DOCUMENTS), and those that are not."""

    documents: pa.RecordBatch
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True)
class ChunkBatch:
    """Chunks of whole documents or of one document's part (CHUNKS), and documents that gave none.

    `truncated` counts those whose end was left out.
    """

    chunks: pa.RecordBatch
    rejected: tuple[Rejected, ...] = ()
    truncated: int = 0


@dataclass(frozen=True)
class Counts:
    """What happened to the documents of a split or a run; `read` is the sum of the next six.

    `removed` counts documents that were removed because a snapshot lacks them; `points_removed`, `chunks` and `points`
    count points of the store; `tokens` counts tokens fed to the encoder; `truncated` counts documents whose end
    was left out, where encoder.long asks for it.
    """

    read: int = 0
    indexed: int = 0
    unchanged: int = 0
    patched: int = 0
    deleted: int = 0
    stale: int = 0
    rejected: int = 0
    removed: int = 0
    points_removed: int = 0
    chunks: int = 0
    points: int = 0
    tokens: int = 0
    truncated: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def verify(self) -> None:
        """Raise BrokenInvariant unless documents in equal documents out, and chunks equal points."""
        out = self.indexed + self.unchanged + self.patched + self.deleted + self.stale + self.rejected
        if self.read != out or self.chunks != self.points:
            raise BrokenInvariant(
                f"a split that read {self.read} documents and accounts for {out}, "
                f"and made {self.chunks} chunks of which {self.points} were acknowledged",
                "Both pairs must be equal before a split is committed",
                "Run again; if it stays, report it as a bug with this message",
            )

    def as_dict(self) -> dict[str, int]:
        """The counts by name, in declaration order."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class SplitAck:
    """A split's trailer: without it nothing of the split is committed.

    `complete` is False for a split that was stopped half-way, or whose source broke (`error` says how); its counts
    are true, and it is not committed. `seconds` is the busy time of each stage.
    """

    split_id: str
    counts: Counts
    rejected: tuple[Rejected, ...] = ()
    complete: bool = True
    error: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The acknowledgement as JSON values, the form the ledger keeps."""
        return {
            "split": self.split_id,
            "counts": self.counts.as_dict(),
            "rejected": [vars(r) for r in self.rejected],
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Progress:
    """How far a run is: documents done out of all (None where only reading tells)."""

    stage: str
    documents: int = 0
    total: int | None = None


Observer = Callable[[Progress], None]
