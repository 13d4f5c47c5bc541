"""Encoder: token ids in, vectors out, by onnxruntime on the provider that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import logs
from pipeline.config import EncoderConfig
from pipeline.encoders.coded import as_coded_run, coded_rows
from pipeline.encoders.decoders.wording import Wording
from pipeline.encoders.describe import describe
from pipeline.encoders.exported import GRAPH, OUTPUT, RAW, STATES, TOKENIZER, exit_output, read_manifest
from pipeline.encoders.late import embed_late
from pipeline.encoders.parity import Run
from pipeline.encoders.pieces import cut, embed_pieces
from pipeline.encoders.prepare import as_run, load_binarizer, output_beside, prepare
from pipeline.encoders.running import Embedded, Rows, Runner, default_batch_tokens
from pipeline.encoders.runtime import cpu_threads, open_session, provider_of
from pipeline.encoders.spec import EncoderSpec
from pipeline.errors import BrokenInvariant, EncoderError, InputsTooLarge, ProviderError
from pipeline.tokens import Tokenizer, load_tokenizer

log = logs.logger(__name__)


class Encoder:
    """An encoder ready to run. Thread-safe: a session may be run from several threads at once.

    spec: what it is; tokenizer, query_tokenizer: texts to inputs, each with its prompt; runner: its graph; provider:
    "cpu" or "cuda"; width: numbers in a row that `encode` gives; code: what makes codes of vectors behind the graph.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        runner: Runner,
        tokenizers: tuple[Tokenizer, Tokenizer],
        provider: Literal["cpu", "cuda"],
        keep_vectors: bool = True,
        wording: Wording | None = None,
        beside: int = 0,
        code: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
    ) -> None:
        self.spec = spec
        kept = spec.dims if keep_vectors or spec.codes is None else 0
        self.width = kept + (spec.codes.width if spec.codes else 0) + beside
        self.runner = runner
        self.provider = provider
        self.tokenizer, self.query_tokenizer = tokenizers
        self._wording = wording
        self._code = code

    @classmethod
    def open(
        cls,
        spec: EncoderSpec,
        folder: Path,
        config: EncoderConfig,
        keep_vectors: bool = True,
        exits: Sequence[EncoderSpec] = (),
    ) -> Encoder:
        """Load the graph of a prepared folder. Raises ProviderError if CUDA was asked for and is not to be had.

        keep_vectors: with codes, whether `encode` gives the vectors too. exits: the encoders whose vectors the graph
        gives too, which lie behind the vector in a row.
        """
        wanted = _provider_for(spec, config)
        try:
            session = open_session(folder / GRAPH, wanted, config.threads)
        except EncoderError:
            raise
        except Exception as error:
            raise EncoderError(
                f"the graph {folder / GRAPH} cannot be loaded: {error}",
                "A graph made by this version",
                f"Delete {folder} and run again",
            ) from error
        file = folder / TOKENIZER
        tokenizers = load_tokenizer(file, spec.document_prompt), load_tokenizer(file, spec.query_prompt)
        manifest = read_manifest(folder)
        provider = provider_of(session)
        batch_tokens = config.batch_tokens or default_batch_tokens(provider, config.threads or cpu_threads())
        run = _run_of(spec, session, keep_vectors, len(exits))
        runner = Runner(run, int(manifest.get("pad_id", 0)), batch_tokens)
        beside = sum(one.dims for one in exits)
        code = None
        if spec.codes and spec.row != "text":
            code = partial(coded_rows, load_binarizer(spec, config), keep_vectors)
        return cls(spec, runner, tokenizers, provider, keep_vectors, Wording.read(manifest), beside, code)

    @property
    def batch_tokens(self) -> int:
        """Padded tokens a batch."""
        return self.runner.batch_tokens

    @property
    def late(self) -> bool:
        """Whether the chunks of a document are encoded together."""
        return self.spec.row == "document"

    def encode(
        self, token_ids: Sequence[NDArray[np.int32]], documents: NDArray[np.integer] | None = None
    ) -> NDArray[np.float32]:
        """float32[n, width] for n inputs of int32 token ids as the model takes them; row i belongs to input i.

        `documents`: which document each input is a chunk of, integer[n], the chunks of one in order and next to each
        other. Late chunking needs it; without that, a row does not depend on it.

        A row is the vector; with codes, the code as a store takes it, and then the vector where it is kept. It depends
        on its own input alone, and is given as the model computes it: NaN or infinite values come through, and it is
        the caller who rejects them. Raises EncoderError for an input that is empty or longer than `spec.max_tokens`.
        Batches that do not fit into memory are halved; inputs that alone do not fit raise InputsTooLarge when all
        others are done.
        """
        if self.late and documents is None:
            raise EncoderError(
                f"chunks without their documents, for {self.spec.source} with "
                f"encoder.long = {self.spec.settings['long']!r}",
                "Whole documents, out of whose token states the vectors of their chunks are made",
                "Start from the documents: headwater ingest, or headwater reindex --from SOURCE",
            )
        owners = np.arange(len(token_ids)) if documents is None else documents
        return self._encode(token_ids, owners, self.tokenizer.around)

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32[n, dims] for n queries, each after the query prompt.

        A query longer than the model takes is cut at its end, with a warning: part of a question still finds
        something, and a search has no dead-letter file. An encoder with codes takes none: queries for codes are
        projected from the plain encoder's vectors.
        """
        if self.spec.codes:
            raise BrokenInvariant("queries for an encoder with codes", "The plain encoder's vectors of them")
        inputs = [self._query_input(text) for text in texts]
        return self._encode(inputs, np.arange(len(inputs)), self.query_tokenizer.around)

    def close(self) -> None:
        """Free the session's memory; the encoder cannot run afterwards."""
        self.runner.close()

    def _encode(
        self, inputs: Rows, documents: NDArray[np.integer], around: tuple[int, int]
    ) -> NDArray[np.float32]:
        self._check([len(ids) for ids in inputs])
        vectors, too_large = self._embed(inputs, documents, around)
        vectors = self._code(vectors) if self._code else vectors
        if too_large:
            shortest = min(len(inputs[row]) for row in too_large)
            which = (
                "chunks of documents that are encoded whole"
                if self.late
                else f"the shortest of {shortest} tokens"
            )
            raise InputsTooLarge(
                f"{len(too_large)} of {len(inputs)} inputs do not fit into memory, each alone, {which}",
                "Memory for a single input",
                "Lower chunking.max_tokens, or use a machine with more memory",
                vectors,
                tuple(too_large),
            )
        return vectors

    def _embed(self, inputs: Rows, documents: NDArray[np.integer], around: tuple[int, int]) -> Embedded:
        """By what a row of the graph holds. `around`: how many tokens of an input come before its text and after."""
        spec, runner = self.spec, self.runner
        if spec.row == "text":
            return runner.vectors(inputs, self.width)
        if spec.row == "document":
            return embed_late(
                inputs, documents, runner.batches, around, spec.max_tokens, spec.dims, spec.normalised
            )
        if spec.row == "prompt" and self._wording:
            pieces = [self._wording.inputs(ids) for ids in inputs]
        else:
            pieces = [cut(ids, around, spec.longest_row) for ids in inputs]
        return embed_pieces(pieces, runner.vectors, spec.dims, spec.normalised)

    def _check(self, lengths: Sequence[int]) -> None:
        if lengths and min(lengths) == 0:
            raise EncoderError("an input without a token", "At least one token", "Leave empty texts out")
        if lengths and max(lengths) > self.spec.max_tokens:
            raise EncoderError(
                f"an input of {max(lengths)} tokens",
                f"At most {self.spec.max_tokens}, special tokens and prompt included",
                "Cut it into chunks first: nothing is truncated silently",
            )

    def _query_input(self, text: str) -> NDArray[np.int32]:
        ids = self.query_tokenizer.encode(text)
        if len(ids) <= self.spec.max_tokens:
            return ids
        room = self.spec.max_tokens - self.query_tokenizer.special_tokens
        log.warning("query_cut", tokens=len(ids), kept=self.spec.max_tokens)
        return self.query_tokenizer.model_input(self.query_tokenizer.tokenize(text).ids[:room])


def _run_of(spec: EncoderSpec, session: Any, keep_vectors: bool, exits: int) -> Run:  # noqa: ANN401 - an InferenceSession
    if exits:
        return as_run(session, tuple(map(exit_output, range(exits + 1))))
    if spec.codes and spec.row == "text":
        return as_coded_run(session, spec.codes.bits, keep_vectors)
    beside = output_beside(spec)
    return as_run(session, (STATES,) if beside == STATES else (OUTPUT, RAW) if beside else (OUTPUT,))


def _provider_for(spec: EncoderSpec, config: EncoderConfig) -> Literal["auto", "cpu", "cuda"]:
    """The provider to ask for: int8 products have kernels on the CPU only."""
    if spec.precision != "int8":
        return config.provider
    if config.provider == "cuda":
        raise ProviderError(
            "encoder.precision is int8 and encoder.provider is cuda",
            "int8 runs on CPUs",
            "Set encoder.precision to fp16 for a GPU",
        )
    return "cpu"


def load_encoder(config: EncoderConfig, keep_vectors: bool = True) -> Encoder:
    """Describe, prepare and open: the encoder of these settings, exported now if it never was."""
    spec = describe(config)
    return Encoder.open(spec, prepare(spec, config), config, keep_vectors)


def load_plain_encoder(config: EncoderConfig) -> Encoder:
    """The same without its codes: vectors of documents and of queries."""
    return load_encoder(config.model_copy(update={"codes": ""}))


def prepare_encoder(config: EncoderConfig) -> tuple[EncoderSpec, Tokenizer]:
    """What a driver needs of an encoder that others will run: its spec and the tokenizer for documents.

    Exports the encoder if that never happened; opens no session, so no GPU is needed here.
    """
    spec = describe(config)
    return spec, load_tokenizer(prepare(spec, config) / TOKENIZER, spec.document_prompt)
