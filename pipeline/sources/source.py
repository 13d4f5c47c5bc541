"""A source, opened and read: from a path to splits, and from a split to documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import SourceConfig
from pipeline.errors import SourceError
from pipeline.schemas import DocumentBatch, Split, Unreadable
from pipeline.sources.columns import Columns, resolve
from pipeline.sources.documents import named, to_documents, to_rejected
from pipeline.sources.duplicates import key_records, losers
from pipeline.sources.files import File, Partition, find
from pipeline.sources.findings import Findings
from pipeline.sources.formats import Reader, open_file, recognise
from pipeline.sources.keys import read_keys
from pipeline.sources.places import current_fingerprint, normal, reading, shown
from pipeline.sources.slices import Part, Size

KEY_SIZE = Size(rows=16384, bytes=4 << 20)
_BYTES_LIMIT = 1 << 30  # a batch's text is one Arrow string array, which holds 2 GiB
_OPENING_THREADS = 8  # a footer in an object store is a round trip or two


@dataclass(frozen=True)
class Source:
    """Documents to index: splits in a fixed order, the same for the same files.

    `rows` counts rows in splits, rejected ones too. `fingerprint` changes when a file does.
    """

    uri: str
    splits: tuple[Split, ...]
    unreadable: tuple[Unreadable, ...]
    rows: int | None
    fingerprint: str


@dataclass(frozen=True)
class Opened:
    """A readable file and what was learned of it; `splits` have no `superseded` yet."""

    file: File
    columns: Columns
    splits: tuple[Split, ...]


def open_source(uri: str, config: SourceConfig, scratch: Path) -> Source:
    """Find a source's files, cut them into splits and find its duplicates; reads keys alone, no texts.

    Writes to the folder `scratch`: standard input, which must stay until the splits are read, and 32 bytes
    for each row while this runs. A file that cannot be read becomes an `Unreadable`. Raises UsageError
    where nothing is found or a file lacks a column, SourceError where no file can be read or `scratch` is
    full.
    """
    files = find(uri, config.format, scratch)
    with ThreadPoolExecutor(_OPENING_THREADS) as threads:
        found = list(threads.map(partial(open_parts, config=config), files))
    unreadable = [file for file in found if isinstance(file, Unreadable)]
    opened = [file for file in found if isinstance(file, Opened)]
    splits = _survey(opened, unreadable, scratch)
    if len(unreadable) == len(files):
        raise SourceError(
            f"none of the {len(files)} files of {uri} can be read; the first: {unreadable[0].message}"
            if len(files) > 1
            else unreadable[0].message
        )
    broken = {file.uri for file in unreadable}
    identity = [[shown(file.uri), file.fingerprint, shown(file.uri) in broken] for file in files]
    identity.append([split.id for split in splits])
    return Source(
        uri if uri == "-" else normal(uri),
        tuple(splits),
        tuple(sorted(unreadable, key=lambda file: file.uri)),
        sum(split.rows or 0 for split in splits),
        hashlib.blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest(),
    )


def read_split(split: Split, config: SourceConfig) -> Iterator[DocumentBatch]:
    """Read the rows of a split, or of its piece, in order: at most `batch_rows` and about `batch_bytes` at a time.

    Safe to repeat: the same split gives the same batches, or SourceError when its file is no longer the one
    that was opened. Raises SourceError that names the file and its part where one is damaged.
    """
    size = Size(config.batch_rows, min(config.batch_bytes, _BYTES_LIMIT))
    superseded = np.array(split.superseded, np.int64)
    with _reopened(split, config) as (reader, columns):
        names = columns.key if split.poison else columns.all
        for row, batch in _in_piece(split, split_rows(reader, split, names, size)):
            with reading(f"rows {row} to {row + batch.num_rows - 1} of {shown(split.uri)}"):
                if split.poison:
                    documents = to_rejected(batch, row, columns, superseded, shown(split.uri), split.poison)
                else:
                    documents = to_documents(batch, row, columns, superseded, shown(split.uri))
            yield documents


def _in_piece(split: Split, batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """What of a split's batches is in its piece, each with the number of its first row."""
    row = split.first_row
    for batch in batches:
        start, stop = split.piece or (row, row + batch.num_rows)
        first, last = max(row, start), min(row + batch.num_rows, stop)
        if first < last:
            yield first, batch.slice(first - row, last - first)
        row += batch.num_rows
        if row >= stop and split.piece:
            return


def read_named(split: Split, config: SourceConfig) -> Iterator[list[tuple[str, str]]]:
    """(namespace, document id) of a split's documents, also of those that are rejected; reads no texts.

    Rows that delete their document and duplicates are left out. Safe to repeat, as `read_split`.
    """
    superseded = np.array(split.superseded, np.int64)
    with _reopened(split, config) as (reader, columns):
        names = tuple(dict.fromkeys(filter(None, (*columns.key, columns.operation))))
        row = split.first_row
        for batch in split_rows(reader, split, names, KEY_SIZE):
            with reading(f"rows from {row} of {shown(split.uri)}"):
                found = named(batch, row, columns, superseded)
            row += batch.num_rows
            yield found


@contextmanager
def _reopened(split: Split, config: SourceConfig) -> Iterator[tuple[Reader, Columns]]:
    """A split's file and columns; SourceError when the file is no longer the one that was opened."""
    with reading(shown(split.uri)):
        fingerprint = current_fingerprint(split.uri)
    if split.id != _split_id(
        File(split.uri, fingerprint, split.partitions), split.format, split.start, split.stop
    ):
        raise SourceError(
            f"{shown(split.uri)} has changed, or is gone, since the run began",
            "Files that stay as they are while they are read",
            "Run again",
        )
    reader = open_file(split.uri, split.format)
    try:
        yield reader, resolve(_schema(reader, split.partitions), config, shown(split.uri))
    finally:
        reader.close()


def _split_id(file: File, format: str, start: int, stop: int) -> str:
    key = json.dumps([shown(file.uri), file.fingerprint, format, start, stop, file.partitions])
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


def open_parts(file: File, config: SourceConfig) -> Opened | Unreadable:
    """A file with its schema and splits, without `superseded`; a UsageError about its columns is for the caller."""
    try:
        format = recognise(file.uri, config.format)
        reader = open_file(file.uri, format)
        try:
            columns = resolve(_schema(reader, file.partitions), config, shown(file.uri))
            counted = config.id if config.id in reader.schema.names else reader.schema.names[0]
            parts = reader.parts(counted)
        finally:
            reader.close()
    except SourceError as error:
        return Unreadable(shown(file.uri), str(error))
    splits, row = [], 0
    for part in parts:
        name = _split_id(file, format, part.start, part.stop)
        splits.append(
            Split(name, file.uri, format, part.start, part.stop, row, part.rows, partitions=file.partitions)
        )
        row += part.rows or 0
    return Opened(file, columns, tuple(splits))


def _schema(reader: Reader, partitions: Sequence[Partition]) -> pa.Schema:
    """A file's columns and those of its path, which win, as everywhere else."""
    constants = {name: value.type for name, value in _constants(partitions).items()}
    own = [field for field in reader.schema if field.name not in constants]
    return pa.schema([*own, *(pa.field(name, kind) for name, kind in constants.items())])


def _constants(partitions: Sequence[Partition]) -> dict[str, Any]:
    return {name: pa.scalar(cast("Any", value)) for name, value in partitions}


def split_rows(reader: Reader, split: Split, names: Sequence[str], size: Size) -> Iterator[pa.RecordBatch]:
    """A split's rows with these columns, those of its path included."""
    constants = _constants(split.partitions)
    own = [name for name in names if name not in constants]
    for batch in reader.read(Part(split.start, split.stop, split.rows), own, size):
        arrays = [
            pa.repeat(constants[name], batch.num_rows) if name in constants else batch.column(name)
            for name in names
        ]
        yield pa.record_batch(arrays, names=list(names))


def _survey(opened: Sequence[Opened], unreadable: list[Unreadable], scratch: Path) -> list[Split]:
    """Count every split's rows and find the duplicates; empty splits are dropped.

    A file that turns out to be damaged is moved to `unreadable`, and its rows take no part.
    """
    spool = scratch / "keys"
    counted: list[Split] = []
    position = 0
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with spool.open("wb") as out:
            for file in opened:
                mark = out.tell()
                try:
                    splits = _count(file, position, out)
                except SourceError as error:
                    unreadable.append(Unreadable(shown(file.file.uri), str(error)))
                    out.seek(mark)
                    out.truncate()
                    continue
                counted += splits
                position += sum(split.rows or 0 for split in splits)
        lost = np.sort(np.concatenate(list(losers(spool))))
    except OSError as error:
        raise SourceError(
            f"ids cannot be spooled to {scratch}: {error}",
            "32 bytes of room for each row of the source",
            "Point TMPDIR to a larger disk",
        ) from error
    return _with_superseded(counted, lost)


def _count(file: Opened, position: int, out: BinaryIO) -> list[Split]:
    """Write a file's keys; `position` is the number of its first row in the whole source."""
    counted: list[Split] = []
    if not file.splits:
        return counted
    reader = open_file(file.file.uri, file.splits[0].format)
    try:
        for split in file.splits:
            rows = 0
            for batch in split_rows(reader, split, file.columns.key, KEY_SIZE):
                with reading(f"rows from {split.first_row + rows} of {shown(split.uri)}"):
                    findings = Findings(batch.num_rows)
                    keys = read_keys(batch, file.columns, findings)
                out.write(key_records(keys, findings.good, position).tobytes())
                rows += batch.num_rows
                position += batch.num_rows
            counted.append(replace(split, rows=rows))
    finally:
        reader.close()
    return counted


def _with_superseded(splits: Sequence[Split], lost: NDArray[np.int64]) -> list[Split]:
    """Give each split its own of the sorted positions `lost`, as row numbers of its file."""
    result, position = [], 0
    for split in splits:
        rows = split.rows or 0
        start, stop = np.searchsorted(lost, [position, position + rows])
        here = lost[start:stop] - position + split.first_row
        if rows:
            result.append(replace(split, superseded=tuple(here.tolist())))
        position += rows
    return result
