"""From a split to windows of chunks."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.chunking import Chunker
from pipeline.config import SourceConfig
from pipeline.lane.windows import NO_CHUNKS, Window, gather
from pipeline.schemas import Split
from pipeline.sources import read_split


def split_windows(
    split: Split, source: SourceConfig, chunker: Chunker, window_tokens: int
) -> Iterator[Window]:
    """Read a split, chunk it, and gather the chunks into windows of about `window_tokens` tokens."""
    return gather(_pieces(split, source, chunker), window_tokens)


def _pieces(split: Split, source: SourceConfig, chunker: Chunker) -> Iterator[Window]:
    for batch in read_split(split, source):
        documents = batch.documents
        deleting = pc.equal(documents.column("operation"), pa.scalar("delete"))
        gone = documents.filter(deleting).select(["namespace", "document_id"]).to_pylist()
        yield Window(
            NO_CHUNKS,
            rows=documents.num_rows + len(batch.rejected),
            deleted=tuple((row["namespace"], row["document_id"]) for row in gone),
            rejected=batch.rejected,
        )
        for chunked in chunker.chunk(documents.filter(pc.invert(deleting)), split.uri):
            yield Window(chunked.chunks, rejected=chunked.rejected)
