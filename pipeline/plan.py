"""The plan of a run: exact counts and an estimate of time, without writing anything but the encoder's cache."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.chunking import Chunker
from pipeline.codes import Room, codes_room
from pipeline.config import Settings
from pipeline.encoders import MAIN, CompositeEncoder, Encoder, EncoderSpec, Reading, load_encoders
from pipeline.job import check_collection, check_target, make_chunker, make_contract, window_tokens
from pipeline.lane import split_windows
from pipeline.lane.windows import Window, token_arrays
from pipeline.schemas import Observer, Progress
from pipeline.sources import open_source
from pipeline.stores import Purpose, open_store, store_exists

SAMPLE_PER_WINDOW = 16  # chunks: the sample is spread over the source, not taken from its first documents
SAMPLE_CHUNKS = 256
MEASURE_S = 3.0


@dataclass(frozen=True)
class Plan:
    """What a run would do: documents indexed and rejected, chunks, tokens fed to the encoder with special tokens.

    `vector_bytes` is float32 vectors alone; `ram_bytes_per_chunk` and `disk_bytes_per_chunk` are what codes, their
    graph and vectors take in the store where there are codes, else None. `seconds` is `tokens` at
    `tokens_per_second`, measured here and now on one lane with chunks of this source.
    """

    documents: int
    rejected: int
    deleted: int
    chunks: int
    tokens: int
    vector_bytes: int
    ram_bytes_per_chunk: int | None
    disk_bytes_per_chunk: int | None
    seconds: float
    tokens_per_second: float
    dims: int
    encoder_version: str
    collection_exists: bool
    unreadable: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self)


def plan(uri: str, settings: Settings, observe: Observer = lambda _: None) -> Plan:
    """Read, chunk and count the whole source, and measure the encoder on a sample of it."""
    check_target(settings)
    with tempfile.TemporaryDirectory(prefix="headwater-") as scratch:
        observe(Progress("reading the source"))
        source = open_source(uri, settings.source, Path(scratch))
        observe(Progress("preparing the encoder"))
        encoder = load_encoders(settings)
        specs = encoder.specs if isinstance(encoder, CompositeEncoder) else {MAIN: encoder.spec}
        readings = encoder.readings if isinstance(encoder, CompositeEncoder) else {}
        try:
            chunker = make_chunker(settings, encoder.spec, encoder.tokenizer)
            exists = _collection_exists(settings, encoder.spec, chunker)
            tally = _Tally(readings)
            size = window_tokens(settings, encoder)
            for split in source.splits:
                for window in split_windows(split, settings.source, chunker, size, readings=readings):
                    tally.add(window)
                    observe(Progress("counting", tally.seen, source.rows))
            rate = _tokens_per_second(encoder, tally.sample)
            room = _room(settings, encoder.spec, tally.chunks)
        finally:
            encoder.close()
    return Plan(
        documents=tally.documents,
        rejected=tally.rejected,
        deleted=tally.deleted,
        chunks=tally.chunks,
        tokens=tally.tokens,
        vector_bytes=tally.chunks * sum(spec.dims for spec in specs.values()) * 4,
        ram_bytes_per_chunk=room.ram if room else None,
        disk_bytes_per_chunk=room.disk if room else None,
        seconds=round(tally.tokens / rate, 1) if rate else 0.0,
        tokens_per_second=round(rate, 1),
        dims=encoder.spec.dims,
        encoder_version=encoder.spec.version,
        collection_exists=exists,
        unreadable=tuple(file.message for file in source.unreadable),
    )


class _Tally:
    """Counts windows, and keeps a few chunks of each as a sample: their tokens, by each reading."""

    def __init__(self, readings: Mapping[str, Reading]) -> None:
        self.documents = self.rejected = self.deleted = self.chunks = self.tokens = 0
        self.sample: dict[str, list[NDArray[np.int32]]] = {name: [] for name in (MAIN, *readings)}

    @property
    def seen(self) -> int:
        return self.documents + self.rejected + self.deleted

    def add(self, window: Window) -> None:
        chunks = window.chunks
        tokens = token_arrays(chunks)
        self.documents += int(np.count_nonzero(chunks.column("chunk_index").to_numpy() == 0))
        self.rejected += len(window.rejected)
        self.deleted += len(window.deleted)
        self.chunks += len(tokens)
        self.tokens += sum(map(len, tokens))
        if tokens and len(self.sample[MAIN]) < SAMPLE_CHUNKS:
            step = max(1, len(tokens) // SAMPLE_PER_WINDOW)
            for name, sample in self.sample.items():
                sample.extend(array.copy() for array in token_arrays(chunks, name)[::step])


def _room(settings: Settings, spec: EncoderSpec, chunks: int) -> Room | None:
    """What a chunk's codes take in the store; None without codes."""
    if spec.codes is None:
        return None
    return codes_room(spec.codes, settings.store.keep_vectors * spec.dims, chunks, settings.store.hnsw.m)


def _collection_exists(settings: Settings, spec: EncoderSpec, chunker: Chunker) -> bool:
    if not store_exists(settings.store):
        return False
    store = open_store(settings.store, Purpose.PLAN)
    try:
        contract = make_contract(settings, spec, chunker.version)
        return check_collection(store, settings, contract) is not None
    finally:
        store.close()


def _tokens_per_second(
    encoder: Encoder | CompositeEncoder, sample: Mapping[str, list[NDArray[np.int32]]]
) -> float:
    """Encode the sample, over and over for a few seconds; 0 where there is nothing to encode.

    The main encoder's tokens count, and the time of all.
    """
    size = len(sample[MAIN])
    if not size:
        return 0.0
    _encode(encoder, sample, 8)  # the first call warms caches up
    began, tokens = time.perf_counter(), 0
    while not tokens or time.perf_counter() - began < MEASURE_S:
        _encode(encoder, sample, size)
        tokens += sum(map(len, sample[MAIN]))
    return tokens / (time.perf_counter() - began)


def _encode(
    encoder: Encoder | CompositeEncoder, sample: Mapping[str, list[NDArray[np.int32]]], most: int
) -> None:
    some = {name: token_ids[:most] for name, token_ids in sample.items()}
    alone = np.arange(len(some[MAIN]))
    if isinstance(encoder, CompositeEncoder):
        encoder.encode(some[MAIN], alone, some)
    else:
        encoder.encode(some[MAIN], alone)
