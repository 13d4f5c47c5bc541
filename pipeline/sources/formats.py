"""File formats: how one is recognised, and what every reader offers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from pipeline.errors import BrokenInvariant, SourceError
from pipeline.sources.ipc import ArrowFile, ArrowStream
from pipeline.sources.parquet import ParquetFile
from pipeline.sources.places import is_remote, locate, reading, shown
from pipeline.sources.slices import Part, Size

_PARQUET = {".parquet", ".pq", ".parq"}
_ARROW = {".arrow", ".arrows", ".feather", ".ipc"}
KNOWN_EXTENSIONS = frozenset(_PARQUET | _ARROW)

_MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrows", b"FEA1": "feather v1"}


class Reader(Protocol):
    """An open file. Methods raise SourceError that names the file, and its part where one is being read."""

    @property
    def schema(self) -> pa.Schema:
        """The file's columns."""

    def parts(self, column: str) -> list[Part]:
        """The pieces that become splits; `column` may be read to count rows."""

    def read(self, part: Part, columns: Sequence[str], size: Size) -> Iterator[pa.RecordBatch]:
        """The rows of a part in order, with exactly these columns, in pieces of this size."""

    def close(self) -> None:
        """Let go of the file; batches already read stay valid."""


def sniff(place: str) -> str | None:
    """The format that a file's first bytes tell, or None."""
    with reading(shown(place)):
        filesystem, path = locate(place)
        with filesystem.open_input_stream(path, compression=None) as stream:
            head = stream.read(8)
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def recognise(place: str, wanted: str) -> str:
    """The format of a file: `parquet`, `arrow` (an IPC file) or `arrows` (an IPC stream).

    `wanted` is the configured format. With `auto` the extension decides for Parquet; Arrow's extensions are
    used for files and streams alike, so there, and for any other name, the first bytes decide. Raises
    SourceError.
    """
    name = place.partition("?")[0] if is_remote(place) else place
    if wanted in ("parquet", "arrows"):
        return wanted
    if wanted == "auto" and Path(name).suffix.lower() in _PARQUET:
        return "parquet"
    found = sniff(place)
    if found == "feather v1":
        raise SourceError(
            f"{shown(place)} is a Feather file of version 1",
            "Feather version 2, which is Arrow IPC",
            "Write it again, in Python with pyarrow.feather.write_feather(table, file)",
        )
    if found is None or (wanted != "auto" and found == "parquet"):
        raise SourceError(
            f"{shown(place)} does not begin as {'Parquet or ' if wanted == 'auto' else ''}Arrow",
            "Parquet, an Arrow IPC file or stream, or Feather version 2",
            "Convert it, or write it again if it was cut off",
        )
    return found


def open_file(place: str, format: str) -> Reader:
    """Open a file of a recognised format. Raises SourceError."""
    match format:
        case "parquet":
            return ParquetFile.open(place)
        case "arrow":
            return ArrowFile.open(place)
        case "arrows":
            return ArrowStream.open(place)
    raise BrokenInvariant(f"a split of format {format!r}")
