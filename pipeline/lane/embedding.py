"""All chunks of a source as vectors or texts in memory, without a store: what evaluations and trainings are made of."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Settings
from pipeline.encoders import Encoder
from pipeline.errors import EncoderError
from pipeline.job import make_chunker, window_tokens
from pipeline.lane.reading import split_windows
from pipeline.lane.windows import document_numbers, token_arrays
from pipeline.schemas import Observer, Progress
from pipeline.sources import Source, open_source

_TEXTS_AT_ONCE = 256


class EmbeddedChunks(NamedTuple):
    """float32[chunks, width] vectors, each chunk's document by its number int64[chunks], and documents' ids."""

    vectors: NDArray[np.float32]
    owners: NDArray[np.int64]
    documents: list[str]


def embed_chunks(source: Source, settings: Settings, encoder: Encoder, observe: Observer) -> EmbeddedChunks:
    """Read, chunk and embed a source as a run would; all vectors are held in memory."""
    chunker = make_chunker(settings, encoder.spec, encoder.tokenizer)
    size = window_tokens(settings, encoder)
    numbers: dict[str, int] = {}
    owners: list[int] = []
    vectors = [np.empty((0, encoder.width), np.float32)]
    for split in source.splits:
        for window in split_windows(split, settings.source, chunker, size, whole=encoder.late):
            for document in map(str, window.chunks.column("document_id").to_pylist()):
                owners.append(numbers.setdefault(document, len(numbers)))
            vectors.append(encoder.encode(token_arrays(window.chunks), document_numbers(window.chunks)))
            observe(Progress("embedding", len(numbers), source.rows))
    return EmbeddedChunks(np.concatenate(vectors), np.asarray(owners, np.int64), list(numbers))


class ChunkTexts(NamedTuple):
    """Each chunk's text, its document by its number int64[chunks], and documents' ids."""

    texts: list[str]
    owners: NDArray[np.int64]
    documents: list[str]


def read_chunks(source: Source, settings: Settings, encoder: Encoder, observe: Observer) -> ChunkTexts:
    """Read and chunk a source as a run with this encoder would; all texts are held in memory."""
    chunker = make_chunker(settings, encoder.spec, encoder.tokenizer)
    size = window_tokens(settings, encoder)
    numbers: dict[str, int] = {}
    owners: list[int] = []
    texts: list[str] = []
    for split in source.splits:
        for window in split_windows(split, settings.source, chunker, size):
            texts += map(str, window.chunks.column("text").to_pylist())
            for document in map(str, window.chunks.column("document_id").to_pylist()):
                owners.append(numbers.setdefault(document, len(numbers)))
            observe(Progress("reading", len(numbers), source.rows))
    return ChunkTexts(texts, np.asarray(owners, np.int64), list(numbers))


def draw_chunks(
    uri: str, settings: Settings, encoder: Encoder, most: int, seed: int, least: int, observe: Observer
) -> list[str]:
    """At most `most` different chunks of a source, drawn at random; EncoderError where there are fewer than `least`."""
    with tempfile.TemporaryDirectory(prefix="headwater-") as scratch:
        found = read_chunks(open_source(uri, settings.source, Path(scratch)), settings, encoder, observe)
    different = list(dict.fromkeys(found.texts))  # a text that comes twice would be known when it is held out
    if len(different) < least:
        raise EncoderError(
            f"{len(different)} different chunks in {uri}",
            f"At least {least}",
            "Give more documents: 2,000 texts of the collection itself are a good start",
        )
    picked: NDArray[np.int64] = np.random.default_rng(seed).permutation(len(different))[:most]
    return [different[row] for row in picked]


def embed_texts(texts: Sequence[str], encoder: Encoder, observe: Observer) -> NDArray[np.float32]:
    """float32[n, width] of texts that are chunks already, whichever encoder they were cut for.

    Raises EncoderError for one that is longer than this encoder takes.
    """
    vectors = [np.empty((0, encoder.width), np.float32)]
    for at in range(0, len(texts), _TEXTS_AT_ONCE):
        vectors.append(
            encoder.encode([encoder.tokenizer.encode(text) for text in texts[at : at + _TEXTS_AT_ONCE]])
        )
        observe(Progress(f"embedding with {encoder.spec.source}", at + len(vectors[-1]), len(texts)))
    return np.concatenate(vectors)
