"""Arrow IPC: files (also Feather v2), split by ranges of record batches, and streams, which are one split.

Local files are mapped, not read: a batch costs memory only where it is touched, and what has been passed on
is given back to the system. Compressed batches are the exception: pyarrow decompresses the wanted columns
of a whole batch. As with every mapping, a file that somebody shortens while it is read ends the process;
replace files by renaming.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.sources.places import is_remote, locate, reading, shown
from pipeline.sources.slices import Part, Size, windows

_SPLIT_ROWS = (
    10_000  # smaller record batches share a split: one costs an open, an acknowledgement and a ledger line
)


@dataclass(frozen=True)
class _Bytes:
    """A file's bytes: mapped where it is local, read through the filesystem where it is not."""

    place: str
    mapped: mmap.mmap | None

    @classmethod
    def open(cls, place: str) -> _Bytes:
        if is_remote(place):
            return cls(place, None)
        with open(place, "rb") as file:
            file.seek(0, 2)
            if not file.tell():
                raise pa.ArrowInvalid("the file is empty")
            return cls(place, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def arrow(self) -> pa.Buffer | pa.NativeFile:
        if self.mapped is not None:
            return pa.py_buffer(self.mapped)
        filesystem, path = locate(self.place)
        return filesystem.open_input_file(path)

    def forget(self) -> None:
        """Drop pages from our memory that were only read; they come back from the file when touched again."""
        if self.mapped is not None and hasattr(self.mapped, "madvise"):
            self.mapped.madvise(mmap.MADV_DONTNEED)


def _only(schema: pa.Schema, columns: Sequence[str]) -> pa.ipc.IpcReadOptions:
    return pa.ipc.IpcReadOptions(
        included_fields=[schema.names.index(name) for name in columns], use_threads=False
    )


@dataclass(frozen=True)
class ArrowFile:
    """An open Arrow IPC file. `in_place` is True where its batches can be used as they lie in memory."""

    place: str
    source: _Bytes
    schema: pa.Schema
    in_place: bool

    @classmethod
    def open(cls, place: str) -> ArrowFile:
        """Read the footer; raises SourceError where there is none."""
        with reading(f"Arrow file {shown(place)}"):
            source = _Bytes.open(place)
            with pa.ipc.open_file(source.arrow()) as reader:
                schema = reader.schema
                in_place = reader.num_record_batches > 0 and _uncompressed(source, schema)
            return cls(place, source, schema, in_place)

    def _reader(self, columns: Sequence[str]) -> pa.ipc.RecordBatchFileReader:
        """Asked for some columns, pyarrow copies a batch's body, so that is for compressed and remote files."""
        return pa.ipc.open_file(
            self.source.arrow(), options=None if self.in_place else _only(self.schema, columns)
        )

    def parts(self, column: str) -> list[Part]:
        """Ranges of record batches with at least ten thousand rows each; reads `column` to count."""
        parts: list[Part] = []
        with (
            reading(f"Arrow file {shown(self.place)}"),
            self._reader([column]) as reader,
        ):
            for number in range(reader.num_record_batches):
                rows = reader.get_batch(number).num_rows
                last = parts[-1] if parts else None
                if last and last.rows is not None and last.rows < _SPLIT_ROWS:
                    parts[-1] = Part(last.start, number + 1, last.rows + rows)
                else:
                    parts.append(Part(number, number + 1, rows))
        return parts

    def read(self, part: Part, columns: Sequence[str], size: Size) -> Iterator[pa.RecordBatch]:
        """The rows of a part, these columns alone, in pieces of this size."""
        with (
            reading(f"record batches {part.start} to {part.stop - 1} of Arrow file {shown(self.place)}"),
            self._reader(columns) as reader,
        ):
            for number in range(part.start, part.stop):
                yield from _pieces(reader.get_batch(number), columns, size, self.source)

    def close(self) -> None:
        """Nothing to do: the mapping ends with the last batch that points into it."""


@dataclass(frozen=True)
class ArrowStream:
    """An Arrow IPC stream in a file."""

    place: str
    source: _Bytes
    schema: pa.Schema

    @classmethod
    def open(cls, place: str) -> ArrowStream:
        """Read the schema; raises SourceError where there is none."""
        with reading(f"Arrow stream {shown(place)}"):
            source = _Bytes.open(place)
            with pa.ipc.open_stream(source.arrow()) as reader:
                return cls(place, source, reader.schema)

    def parts(self, column: str) -> list[Part]:
        """One part; only reading tells its rows."""
        return [Part(0, 1, None)]

    def read(self, part: Part, columns: Sequence[str], size: Size) -> Iterator[pa.RecordBatch]:
        """All rows, these columns alone, in pieces of this size."""
        with (
            reading(f"Arrow stream {shown(self.place)}"),
            pa.ipc.open_stream(self.source.arrow(), options=_only(self.schema, columns)) as reader,
        ):
            for batch in reader:
                yield from _pieces(batch, columns, size, self.source)

    def close(self) -> None:
        """Nothing to do: the mapping ends with the last batch that points into it."""


def _uncompressed(source: _Bytes, schema: pa.Schema) -> bool:
    """True if a mapped file's first batch points into the mapping.

    Behind its magic of eight bytes an IPC file is an IPC stream, and a stream is read in place.
    """
    if source.mapped is None or not schema.names:
        return False
    whole = pa.py_buffer(source.mapped)
    try:
        with pa.ipc.open_stream(whole.slice(8), options=_only(schema, schema.names[:1])) as reader:
            buffers = [
                buffer for buffer in reader.read_next_batch().column(0).buffers() if buffer is not None
            ]
    except (pa.ArrowException, StopIteration):  # damaged, or written in another order: reading will tell
        return False
    return all(whole.address <= buffer.address < whole.address + whole.size for buffer in buffers)


def _pieces(
    batch: pa.RecordBatch, columns: Sequence[str], size: Size, source: _Bytes
) -> Iterator[pa.RecordBatch]:
    for piece in windows(batch.select(list(columns)), size):
        yield piece
        source.forget()
