"""From a split to windows of chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.chunking import Chunker
from pipeline.config import SourceConfig
from pipeline.encoders import Reading
from pipeline.lane.windows import NO_CHUNKS, Window, also_read, gather
from pipeline.schemas import DocumentBatch, Split
from pipeline.sources import read_split

Sift = Callable[[DocumentBatch], tuple[Window, pa.RecordBatch]]
"""Decides what a batch's rows ask for: a window without chunks, and the documents (DOCUMENTS) to be embedded."""


def embed_all(batch: DocumentBatch) -> tuple[Window, pa.RecordBatch]:
    """All upserts are to be embedded, whatever a store holds."""
    documents = batch.documents
    deleting = pc.equal(documents.column("operation"), pa.scalar("delete"))
    gone = documents.filter(deleting).select(["namespace", "document_id"]).to_pylist()
    deleted = tuple((row["namespace"], row["document_id"]) for row in gone)
    rows = documents.num_rows + len(batch.rejected)
    window = Window(NO_CHUNKS, rows=rows, deleted=deleted, rejected=batch.rejected)
    return window, documents.filter(pc.invert(deleting))


def split_windows(
    split: Split,
    source: SourceConfig,
    chunker: Chunker,
    window_tokens: int,
    sift: Sift = embed_all,
    whole: bool = False,
    readings: Mapping[str, Reading] | None = None,
) -> Iterator[Window]:
    """Read a split, chunk what is to be embedded, and gather the chunks into windows of about that many tokens.

    `whole`: all chunks of a document are in one window. `readings`: by what else their texts are read.
    """
    pieces = _pieces(split, source, chunker, sift)
    if readings:
        pieces = (also_read(piece, readings) for piece in pieces)
    return gather(pieces, window_tokens, whole)


def _pieces(split: Split, source: SourceConfig, chunker: Chunker, sift: Sift) -> Iterator[Window]:
    for batch in read_split(split, source):
        window, documents = sift(batch)
        yield window
        for chunked in chunker.chunk(documents, split.uri):
            yield Window(chunked.chunks, rejected=chunked.rejected, truncated=chunked.truncated)
