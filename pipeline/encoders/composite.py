"""CompositeEncoder: an encoder with its aspects, whose vectors lie side by side in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Settings
from pipeline.encoders.aspects import MAIN, Exit, describe_aspects, prepare_aspects, reads_as
from pipeline.encoders.describe import describe
from pipeline.encoders.session import Encoder, load_encoder
from pipeline.encoders.spec import EncoderSpec
from pipeline.errors import InputsTooLarge
from pipeline.tokens import Tokenizer

TokenIds = Sequence[NDArray[np.int32]]


class Reading(NamedTuple):
    """How texts are read for encoders that do not take the main one's tokens, and the most that all of them take."""

    tokenizer: Tokenizer
    max_tokens: int


class Part(NamedTuple):
    """An encoder that is run, what its rows give, and the name of the reading that it takes; "": the main one.

    Its rows are the widest vectors of each exit, side by side.
    """

    encoder: Encoder
    exits: tuple[Exit, ...]
    reads: str

    def columns(self, rows: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The vectors of each name out of rows float32[n, ·]."""
        cuts = np.cumsum([exit.width for exit in self.exits])[:-1].tolist()
        whole = zip(self.exits, np.split(rows, cuts, axis=1), strict=True)
        normalised = self.encoder.spec.normalised
        return {n: slice_rows(v, dims, normalised) for exit, v in whole for n, dims in exit.dims.items()}


class CompositeEncoder:
    """The main encoder and those of its aspects, as one encoder of documents. Thread-safe, as each of them is.

    spec, tokenizer: the main encoder's. specs: all of theirs, by name, the main one's as "", in the order of columns.
    readings: what texts are read by beside the main encoder's tokenizer, by name.
    """

    def __init__(self, specs: Mapping[str, EncoderSpec], parts: Sequence[Part]) -> None:
        self.specs = specs
        self.spec = specs[MAIN]
        self._parts = parts
        self._main = next(part.encoder for part in parts if any(MAIN in exit.dims for exit in part.exits))
        self.tokenizer = self._main.tokenizer
        self.readings: dict[str, Reading] = {}
        for part in parts:
            if part.reads != MAIN:
                known = self.readings.get(
                    part.reads, Reading(part.encoder.tokenizer, part.encoder.spec.max_tokens)
                )
                most = min(known.max_tokens, part.encoder.spec.max_tokens)
                self.readings[part.reads] = Reading(known.tokenizer, most)

    @property
    def width(self) -> int:
        """Numbers in a row that `encode` gives."""
        return sum(spec.dims for spec in self.specs.values())

    @property
    def batch_tokens(self) -> int:
        """Padded tokens a batch of the main encoder."""
        return self._main.batch_tokens

    @property
    def late(self) -> bool:
        """Whether one of them encodes the chunks of a document together."""
        return any(part.encoder.late for part in self._parts)

    def encode(
        self,
        token_ids: TokenIds,
        documents: NDArray[np.integer] | None = None,
        others: Mapping[str, TokenIds] | None = None,
    ) -> NDArray[np.float32]:
        """float32[n, width] for n texts: the main encoder's vectors, then each aspect's, as `Encoder` gives them.

        `token_ids` are those of the main encoder; `others` the same texts by each of `readings`, empty where a text has
        more tokens than `max_tokens` there: then its vectors by that are NaN. Raises InputsTooLarge as `Encoder` does.
        """
        columns: dict[str, NDArray[np.float32]] = {}
        lost: dict[int, InputsTooLarge] = {}
        for part in self._parts:
            ids = token_ids if part.reads == MAIN else (others or {})[part.reads]
            rows, too_large = _encode(part.encoder, ids, documents)
            lost |= too_large
            columns |= part.columns(rows)
        vectors = np.concatenate([columns[name] for name in self.specs], axis=1)
        for error in lost.values():
            raise InputsTooLarge(error.got, error.need, error.do, vectors, tuple(sorted(lost))) from error
        return vectors

    def close(self) -> None:
        """Free the sessions' memory."""
        for part in self._parts:
            part.encoder.close()


def load_encoders(settings: Settings) -> Encoder | CompositeEncoder:
    """Describe, prepare and open the encoder of these settings, with its aspects where there are some."""
    if not settings.aspects:
        return load_encoder(settings.encoder, settings.store.keep_vectors)
    main = describe(settings.encoder)
    parts: list[Part] = []
    for run in prepare_aspects(settings, main):
        spec, *more = run.specs
        same = (part.reads for part in parts if reads_as(part.encoder.spec, spec))
        reads = MAIN if reads_as(main, spec) else next(same, run.exits[0].widest)
        parts.append(Part(Encoder.open(spec, run.folder, run.config, exits=more), run.exits, reads))
    return CompositeEncoder({MAIN: main, **describe_aspects(settings, main)}, parts)


def _encode(
    encoder: Encoder, token_ids: TokenIds, documents: NDArray[np.integer] | None
) -> tuple[NDArray[np.float32], dict[int, InputsTooLarge]]:
    """float32[n, ·] of inputs of which some may be missing, and by number those that did not fit into memory."""
    there = [number for number, ids in enumerate(token_ids) if len(ids)]
    some = documents[there] if documents is not None else None
    too_large: dict[int, InputsTooLarge] = {}
    try:
        found = encoder.encode([token_ids[number] for number in there], some)
    except InputsTooLarge as error:
        found = error.vectors
        too_large = {there[row]: error for row in error.rows}
    if len(there) == len(token_ids):
        return found, too_large
    rows = np.full((len(token_ids), found.shape[1]), np.nan, np.float32)
    rows[there] = found
    return rows, too_large


def slice_rows(vectors: NDArray[np.float32], dims: int, normalised: bool) -> NDArray[np.float32]:
    """The first dimensions of vectors, normalised again where they were: as a slice inside the graph makes them."""
    if dims == vectors.shape[1]:
        return vectors
    some = vectors[:, :dims]
    return some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-12) if normalised else some
