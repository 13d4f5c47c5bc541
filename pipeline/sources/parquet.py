"""Parquet: a split is a row group, read a little at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.places import locate, reading, shown
from pipeline.sources.slices import Part, Size, windows

_COLUMN_BUFFER = (
    1 << 20
)  # each column is read through a buffer of this many bytes, whatever the row group's size
_READ_BYTES = 1 << 20  # decoded at a time by the row group's average: small, for rows are not all average


@dataclass(frozen=True)
class ParquetFile:
    """An open Parquet file."""

    place: str
    file: pq.ParquetFile
    schema: pa.Schema

    @classmethod
    def open(cls, place: str) -> ParquetFile:
        """Read the footer; raises SourceError where there is none."""
        with reading(f"Parquet file {shown(place)}"):
            filesystem, path = locate(place)
            file = pq.ParquetFile(
                filesystem.open_input_file(path), buffer_size=_COLUMN_BUFFER, pre_buffer=False
            )
            return cls(place, file, file.schema_arrow)

    def parts(self, column: str) -> list[Part]:
        """One part for each row group that has rows; nothing but the footer is read."""
        metadata = self.file.metadata
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        return [Part(group, group + 1, count) for group, count in enumerate(rows)]

    def read(self, part: Part, columns: Sequence[str], size: Size) -> Iterator[pa.RecordBatch]:
        """The rows of a part, these columns alone, in pieces of this size.

        Holds a buffer and a page for each column, and the rows being decoded: as many as hold about a
        megabyte on the row group's average.
        """
        groups = list(range(part.start, part.stop))
        rows = max(1, min(size.rows, min(_READ_BYTES, size.bytes) // self._row_bytes(groups, columns)))
        with reading(f"row group {part.start} of Parquet file {shown(self.place)}"):
            for batch in self.file.iter_batches(
                batch_size=rows, row_groups=groups, columns=list(columns), use_threads=False
            ):
                yield from windows(batch.select(list(columns)), size)

    def _row_bytes(self, groups: Sequence[int], columns: Sequence[str]) -> int:
        """Average uncompressed bytes of a row over the wanted columns, at least 1."""
        total, rows = 0, 0
        prefixes = tuple(f"{name}." for name in columns)
        for number in groups:
            group = self.file.metadata.row_group(number)
            rows += group.num_rows
            for index in range(group.num_columns):
                column = group.column(index)
                if column.path_in_schema in columns or column.path_in_schema.startswith(prefixes):
                    total += column.total_uncompressed_size
        return max(1, total // max(1, rows))

    def close(self) -> None:
        """Close the file; batches already read stay valid."""
        self.file.close(force=True)
