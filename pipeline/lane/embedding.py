"""All chunks of a source as vectors in memory, without a store: what evaluations and trainings are made of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Settings
from pipeline.encoders import Encoder
from pipeline.job import make_chunker, window_tokens
from pipeline.lane.reading import split_windows
from pipeline.lane.windows import token_arrays
from pipeline.schemas import Observer, Progress
from pipeline.sources import Source


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
        for window in split_windows(split, settings.source, chunker, size):
            for document in map(str, window.chunks.column("document_id").to_pylist()):
                owners.append(numbers.setdefault(document, len(numbers)))
            vectors.append(encoder.encode(token_arrays(window.chunks)))
            observe(Progress("embedding", len(numbers), source.rows))
    return EmbeddedChunks(np.concatenate(vectors), np.asarray(owners, np.int64), list(numbers))
