"""Encoder: token ids in, vectors out, by onnxruntime on the provider that was asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import logs, metrics
from pipeline.config import EncoderConfig
from pipeline.encoders.batching import plan_batches
from pipeline.encoders.coded import as_coded_run
from pipeline.encoders.decoders.wording import Wording
from pipeline.encoders.describe import describe
from pipeline.encoders.exported import GRAPH, OUTPUT, RAW, STATES, TOKENIZER, exit_output, read_manifest
from pipeline.encoders.late import Means, Pass, passes
from pipeline.encoders.long import LATE
from pipeline.encoders.parity import Run, pad
from pipeline.encoders.pieces import cut, join
from pipeline.encoders.prepare import as_run, output_beside, prepare
from pipeline.encoders.runtime import cpu_threads, is_out_of_memory, open_session, provider_of
from pipeline.encoders.spec import EncoderSpec
from pipeline.errors import BrokenInvariant, EncoderError, InputsTooLarge, ProviderError
from pipeline.tokens import Tokenizer, load_tokenizer

# Padded tokens a batch. On two cores MiniLM and mpnet-base run as fast at 512 as at 1024 and 5 to 20 % slower beyond,
# where the activations leave the cache. More cores get more, so that each has rows to work on.
_CPU_TOKENS_PER_THREAD, _CPU_LEAST_TOKENS, _CPU_MOST_TOKENS = 256, 1024, 4096
# A GPU wants enough rows to fill it.
_CUDA_TOKENS = 16384

log = logs.logger(__name__)


class Encoder:
    """An encoder ready to run. Thread-safe: a session may be run from several threads at once.

    spec: what it is; tokenizer, query_tokenizer: texts to inputs, each with its prompt; provider: "cpu" or "cuda";
    batch_tokens: padded tokens a batch; width: numbers in a row that `encode` gives.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        run: Run,
        tokenizers: tuple[Tokenizer, Tokenizer],
        pad_id: int,
        provider: Literal["cpu", "cuda"],
        batch_tokens: int,
        keep_vectors: bool = True,
        wording: Wording | None = None,
        beside: int = 0,
    ) -> None:
        self.spec = spec
        kept = spec.dims if keep_vectors or spec.codes is None else 0
        self.width = kept + (spec.codes.width if spec.codes else 0) + beside
        self.provider = provider
        self.tokenizer, self.query_tokenizer = tokenizers
        self._run: Run | None = run
        self._wording = wording
        self._pad_id = pad_id
        self.batch_tokens = batch_tokens

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
        pad_id, wording = int(manifest.get("pad_id", 0)), Wording.read(manifest)
        provider = provider_of(session)
        batch_tokens = config.batch_tokens or default_batch_tokens(provider, config.threads or cpu_threads())
        run = _run_of(spec, session, keep_vectors, len(exits))
        beside = sum(one.dims for one in exits)
        return cls(spec, run, tokenizers, pad_id, provider, batch_tokens, keep_vectors, wording, beside)

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
        lengths = [len(ids) for ids in token_ids]
        self._check(lengths)
        if self.spec.in_one_row:
            return self._encode_rows(token_ids, self.width)
        if not self.late:
            return self._encode_pieces(token_ids, self.tokenizer.around)
        if documents is None:
            raise EncoderError(
                f"chunks without their documents, for {self.spec.source} with encoder.long = {LATE!r}",
                "Whole documents, out of whose token states the vectors of their chunks are made",
                "Start from the documents: headwater ingest, or headwater reindex --from SOURCE",
            )
        return self._encode_late(token_ids, documents, self.tokenizer.around)

    @property
    def late(self) -> bool:
        """Whether the chunks of a document are encoded together."""
        return bool(self.spec.long and self.spec.long.method == LATE)

    def _encode_late(
        self,
        token_ids: Sequence[NDArray[np.int32]],
        documents: NDArray[np.integer],
        around: tuple[int, int],
    ) -> NDArray[np.float32]:
        """float32[n, dims]: the means of the chunks' token states in their documents."""
        starts = np.flatnonzero(np.diff(documents, prepend=-1 if not len(documents) else documents[0] - 1))
        todo = [
            Pass(one.ids, np.where(one.owners < 0, -1, one.owners + start))
            for start, stop in pairwise([*starts.tolist(), len(token_ids)])
            for one in passes(token_ids[start:stop], around, self.spec.max_tokens)
        ]
        means, too_large = Means(len(token_ids)), list[int]()
        for batch, states in self._batches([one.ids for one in todo]):
            for row, number in enumerate(batch):
                owners = todo[number].owners
                if states is None:
                    too_large += np.unique(owners[owners >= 0]).tolist()
                else:
                    means.add(states[row, : len(owners)], owners)
        vectors = means.vectors(self.spec.dims, self.spec.normalised)
        if too_large:
            vectors[too_large] = np.nan
            raise _too_large(len(token_ids), tuple(dict.fromkeys(too_large)), vectors)
        return vectors

    def _encode_pieces(
        self, token_ids: Sequence[NDArray[np.int32]], around: tuple[int, int]
    ) -> NDArray[np.float32]:
        """The vectors of inputs of which each takes several rows, float32[n, dims]: windows, or prompts."""
        if self._wording and len(self._wording.rows) > 1:
            pieces = [self._wording.inputs(ids) for ids in token_ids]
        else:
            pieces = [cut(ids, around, self.spec.longest_row) for ids in token_ids]
        counts = [len(rows) for rows in pieces]
        dims, normalised = self.spec.dims, self.spec.normalised
        try:
            both = self._encode_rows([row for rows in pieces for row in rows], 2 * dims)
        except InputsTooLarge as error:
            owners = np.repeat(np.arange(len(counts)), counts)[list(error.rows)]
            joined = join(error.vectors[:, :dims], error.vectors[:, dims:], counts, normalised)
            raise InputsTooLarge(
                error.got, error.need, error.do, joined, tuple(dict.fromkeys(owners.tolist()))
            ) from error
        return join(both[:, :dims], both[:, dims:], counts, normalised)

    def _encode_rows(self, token_ids: Sequence[NDArray[np.int32]], width: int) -> NDArray[np.float32]:
        """What the graph makes of these rows, float32[n, width], in batches of similar length."""
        vectors = np.empty((len(token_ids), width), dtype=np.float32)
        too_large: list[int] = []
        for batch, result in self._batches(token_ids):
            vectors[batch] = np.nan if result is None else result
            too_large += batch if result is None else []
        if too_large:
            raise _too_large(
                len(vectors), tuple(too_large), vectors, min(len(token_ids[row]) for row in too_large)
            )
        return vectors

    def _batches(
        self, rows: Sequence[NDArray[np.int32]]
    ) -> Iterator[tuple[list[int], NDArray[np.floating] | None]]:
        """Run the graph over rows of similar length; yield their numbers, and None for one too large for memory."""
        waiting = plan_batches([len(row) for row in rows], self.batch_tokens)[::-1]
        while waiting:
            batch = waiting.pop()
            result = self._run_batch([rows[index] for index in batch])
            if result is not None or len(batch) == 1:
                yield batch, result
            else:
                middle = len(batch) // 2
                waiting += [batch[middle:], batch[:middle]]

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32[n, dims] for n queries, each after the query prompt.

        A query longer than the model takes is cut at its end, with a warning: part of a question still finds
        something, and a search has no dead-letter file. An encoder with codes takes none: queries for codes are
        projected from the plain encoder's vectors.
        """
        if self.spec.codes:
            raise BrokenInvariant("queries for an encoder with codes", "The plain encoder's vectors of them")
        inputs = [self._query_input(text) for text in texts]
        if self.late:
            return self._encode_late(inputs, np.arange(len(inputs)), self.query_tokenizer.around)
        if self.spec.in_one_row:
            return self.encode(inputs)
        return self._encode_pieces(inputs, self.query_tokenizer.around)

    def close(self) -> None:
        """Free the session's memory; the encoder cannot run afterwards."""
        self._run = None

    def _check(self, lengths: Sequence[int]) -> None:
        if lengths and min(lengths) == 0:
            raise EncoderError("an input without a token", "At least one token", "Leave empty texts out")
        if lengths and max(lengths) > self.spec.max_tokens:
            raise EncoderError(
                f"an input of {max(lengths)} tokens",
                f"At most {self.spec.max_tokens}, special tokens and prompt included",
                "Cut it into chunks first: nothing is truncated silently",
            )

    def _run_batch(self, rows: list[NDArray[np.int32]]) -> NDArray[np.floating] | None:
        """The vectors of one batch, or None if it does not fit into memory."""
        if self._run is None:
            raise EncoderError("a closed encoder", "An open one", "")
        longest = max(map(len, rows))
        size = len(rows) * longest
        since = time.perf_counter()
        try:
            vectors = self._run(*pad(rows, self._pad_id))
        except Exception as error:
            if not is_out_of_memory(error):
                raise EncoderError(
                    f"running {len(rows)} inputs of {longest} tokens failed: {error}", "A model that runs"
                ) from error
            if len(rows) > 1:
                self.batch_tokens = max(size // 2, 1)  # later batches need not find out again
            log.warning("out_of_memory", batch_tokens=size, going_on_with=self.batch_tokens)
            metrics.record(metrics.RETRIES, 1, "OutOfMemory")
            return None
        metrics.record(metrics.ENCODER_SECONDS, time.perf_counter() - since)
        tokens = sum(len(row) for row in rows)
        metrics.record(metrics.ENCODER_TOKENS, tokens, "text")
        metrics.record(metrics.ENCODER_TOKENS, size - tokens, "padding")
        return vectors

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
    if spec.codes:
        return as_coded_run(session, spec.codes.bits, keep_vectors)
    beside = output_beside(spec)
    return as_run(session, (STATES,) if beside == STATES else (OUTPUT, RAW) if beside else (OUTPUT,))


def _too_large(
    inputs: int, rows: tuple[int, ...], vectors: NDArray[np.float32], shortest: int = 0
) -> InputsTooLarge:
    which = f"the shortest of {shortest} tokens" if shortest else "chunks of documents that are encoded whole"
    return InputsTooLarge(
        f"{len(rows)} of {inputs} inputs do not fit into memory, each alone, {which}",
        "Memory for a single input",
        "Lower chunking.max_tokens, or use a machine with more memory",
        vectors,
        rows,
    )


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


def default_batch_tokens(provider: Literal["cpu", "cuda"], threads: int) -> int:
    """How many padded tokens a batch has where the settings leave it open."""
    if provider == "cuda":
        return _CUDA_TOKENS
    return min(max(_CPU_LEAST_TOKENS, _CPU_TOKENS_PER_THREAD * threads), _CPU_MOST_TOKENS)


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
