"""From documents to chunks: DOCUMENTS in, CHUNKS out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.chunking.boundaries import Boundary, plain_boundaries
from pipeline.chunking.cutting import Cutter, Span, Unsplittable
from pipeline.chunking.markdown import markdown_boundaries
from pipeline.config import ChunkingConfig
from pipeline.errors import UsageError
from pipeline.schemas import CHUNKS, DOCUMENTS, ChunkBatch, Rejected, check, digest, point_id
from pipeline.tokens import Tokenizer, Tokens

# Part of the chunker's version. Raise it whenever a change, of this code or of a pinned library, moves a cut
# (the tests hold some): chunks of two revisions must not share a document.
_REVISION = 1

_MIN_ROOM = 8  # tokens of text: one character may take several
_BATCH_CHUNKS = 2048
_BATCH_BYTES = 8 << 20

TooLong = Literal["split", "error", "truncate"]


class Chunker:
    """Cuts documents at structural boundaries into chunks that fit the encoder, each tokenized once.

    max_tokens: what the encoder takes, special tokens and document prompt included; the configuration may ask
        for less, never for more. Raises UsageError where that or the overlap leaves no room for text.
    too_long: what happens to a document that is more than one chunk: "split", "error" (it is rejected) or "truncate"
        (its end is left out, and it is counted).
    version: 16 hex digits, the same as long as the same text is cut into the same chunks.
    """

    def __init__(
        self, tokenizer: Tokenizer, config: ChunkingConfig, max_tokens: int, too_long: TooLong = "split"
    ) -> None:
        self._tokenizer = tokenizer
        self._format = config.format
        self._budget = _budget(tokenizer, config, max_tokens)
        self._overlap = config.overlap_tokens
        self._room = self._budget - tokenizer.special_tokens
        self._too_long = too_long
        parts = [_REVISION, tokenizer.version, self._budget, self._overlap, self._format]
        parts += [] if too_long == "split" else [too_long]
        self.version = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def chunk(self, documents: pa.RecordBatch, uri: str) -> Iterator[ChunkBatch]:
        """Yield the chunks of documents (DOCUMENTS, all upserts) in order, in batches of bounded size.

        A document's chunks follow each other, over several batches if need be, and each carries their number.
        Documents without a token are rejected. Keeps no state: the same documents give the same chunks again.
        """
        rows = check(documents, DOCUMENTS).to_pylist()
        gathered = _Gathered()
        all_tokens = self._tokenizer.tokenize_batch(row["text"] for row in rows)
        for row, tokens in zip(rows, all_tokens, strict=True):
            spans = self._spans(row["text"], tokens)
            if not spans:
                gathered.rejected.append(_reject(row, uri, tokens))
            elif len(spans) > 1 and self._too_long == "error":
                gathered.rejected.append(_reject_long(row, uri, len(tokens.ids), self._room))
                continue
            elif len(spans) > 1 and self._too_long == "truncate":
                spans = self._beginning(row["text"], tokens)
                gathered.truncated += 1
            text_hash = digest(row["text"])
            for index, span in enumerate(spans):
                gathered.add(row, span, index, len(spans), text_hash)
                if gathered.is_full():
                    yield gathered.batch()
                    gathered = _Gathered()
        if gathered.chunks or gathered.rejected:
            yield gathered.batch()

    def _spans(self, text: str, tokens: Tokens) -> list[Span]:
        """The spans of a document; none where it has no tokens or cannot be cut small enough."""
        if not len(tokens.ids):
            return []
        boundaries = self._boundaries(text, tokens)
        cutter = Cutter(text, tokens, boundaries, self._tokenizer, self._budget, self._overlap)
        try:
            return list(cutter.spans())
        except Unsplittable:
            return []

    def _beginning(self, text: str, tokens: Tokens) -> list[Span]:
        """As much of a document as fits into one chunk, up to the end of a word."""
        known = min(len(tokens.ids), self._room + 1)
        some = Tokens(tokens.ids[:known], tokens.starts[:known], tokens.ends[:known])
        words = np.flatnonzero(plain_boundaries(text, some)[1:] >= Boundary.WORD) + 1
        stop = int(words[-1]) if len(words) and words[-1] > self._room // 2 else min(known, self._room)
        text = text[: tokens.ends[stop - 1]]
        first = Tokens(tokens.ids[:stop], tokens.starts[:stop], tokens.ends[:stop])
        boundaries = np.zeros(stop, dtype=np.uint8)
        return [next(Cutter(text, first, boundaries, self._tokenizer, self._budget).spans())]

    def _boundaries(self, text: str, tokens: Tokens) -> NDArray[np.uint8]:
        if len(tokens.ids) <= self._room and self._tokenizer.cuts_cleanly:
            return np.zeros(len(tokens.ids), dtype=np.uint8)  # one chunk: nobody will ask
        if self._format == "markdown":
            return markdown_boundaries(text, tokens, self._room)
        return plain_boundaries(text, tokens)


@dataclass
class _Gathered:
    """The rows of the next batch."""

    chunks: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    size: int = 0  # bytes, about
    truncated: int = 0

    def add(self, row: dict[str, Any], span: Span, index: int, count: int, text_hash: str) -> None:
        """Add a document's chunk."""
        text = row["text"][span.start : span.end]
        chunk = {
            "point_id": point_id(row["namespace"], row["document_id"], index),
            "document_id": row["document_id"],
            "namespace": row["namespace"],
            "chunk_index": index,
            "chunk_count": count,
            "text": text,
            "start": span.start,
            "end": span.end,
            "token_ids": span.token_ids,
            "text_hash": text_hash,
            "metadata": row["metadata"],
            "sequence": row["sequence"],
            "row": row["row"],
        }
        self.chunks.append(chunk)
        self.size += len(text) + len(row["metadata"]) + span.token_ids.nbytes

    def is_full(self) -> bool:
        """True when the batch is as large as it may get."""
        return len(self.chunks) >= _BATCH_CHUNKS or self.size >= _BATCH_BYTES

    def batch(self) -> ChunkBatch:
        """The rows as a ChunkBatch."""
        arrays = [
            pa.array([chunk[column.name] for chunk in self.chunks], type=column.type) for column in CHUNKS
        ]
        chunks = pa.RecordBatch.from_arrays(arrays, schema=CHUNKS)
        return ChunkBatch(chunks, tuple(self.rejected), self.truncated)


def _reject(row: dict[str, Any], uri: str, tokens: Tokens) -> Rejected:
    """Why a document has no chunks: it has no tokens, or one character has too many of them."""
    if len(tokens.ids) and row["text"].strip():
        reason, message = "unsplittable", "A single character takes more tokens than a chunk may have"
    else:
        reason, message = "no_tokens", f"The tokenizer makes no token of its {len(row['text'])} characters"
    return _rejected(row, uri, reason, message)


def _reject_long(row: dict[str, Any], uri: str, tokens: int, room: int) -> Rejected:
    message = (
        f"Its {tokens} tokens are more than the {room} that the encoder takes at once. Raise encoder.max_tokens, or "
        "set encoder.long to split, which cuts documents into chunks."
    )
    return _rejected(row, uri, "too_long", message)


def _rejected(row: dict[str, Any], uri: str, reason: str, message: str) -> Rejected:
    return Rejected(
        row["document_id"], uri, row["row"], "chunking", reason, message, row["namespace"], row["sequence"]
    )


def _budget(tokenizer: Tokenizer, config: ChunkingConfig, max_tokens: int) -> int:
    """How many tokens a chunk may have, special tokens and prompt included."""
    if config.max_tokens > max_tokens:
        raise UsageError(
            f"chunking.max_tokens = {config.max_tokens}",
            f"The encoder takes {max_tokens} tokens at most",
            "Lower chunking.max_tokens",
        )
    budget = config.max_tokens or max_tokens
    room = budget - tokenizer.special_tokens
    if room < _MIN_ROOM:
        raise UsageError(
            f"chunks of {budget} tokens, of which {tokenizer.special_tokens} are special tokens and prompt",
            f"At least {_MIN_ROOM} tokens of text",
            f"Set chunking.max_tokens to {tokenizer.special_tokens + _MIN_ROOM} or more",
        )
    if config.overlap_tokens * 2 >= room:
        raise UsageError(
            f"chunking.overlap_tokens = {config.overlap_tokens} in chunks of {room} tokens of text",
            "An overlap of less than half a chunk",
            f"Set chunking.overlap_tokens to {(room - 1) // 2} or less",
        )
    return budget
