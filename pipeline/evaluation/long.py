"""How well one sentence of a long document is found, by an encoder's own way with long texts and by others.

truncation            the beginning that the model's window holds
mean of windows       the mean of the vectors of windows of equal size; `pcw` takes them before they are normalised
best window           the best of them: a vector each
best chunk            the best of the chunks that [chunking] asks for; beside late chunking alone
bm25                  words alone
the encoder's method  one vector a document, where its settings have one; with late chunking the best of its chunks

The first four are the plain model's: `ntk` changes what short texts and queries become.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.chunking import Chunker
from pipeline.config import EncoderConfig, Settings
from pipeline.encoders import Encoder, check_late, describe, load_encoder
from pipeline.encoders.exported import is_exported
from pipeline.encoders.locate import locate
from pipeline.encoders.long import NTK
from pipeline.encoders.pieces import cut
from pipeline.encoders.prepare import check_room
from pipeline.errors import UsageError
from pipeline.evaluation.bm25 import rank_by_words
from pipeline.evaluation.bootstrap import paired
from pipeline.evaluation.needles import TASKS, Haystack, Task, make, read_prose
from pipeline.evaluation.retrieval import rank
from pipeline.job import make_chunker
from pipeline.lane.windows import token_arrays
from pipeline.schemas import DOCUMENTS, Observer, Progress

BASELINE, MEAN_OF_WINDOWS = "truncation", "mean of windows"
_DEPTH = 10

Found = list[list[int]]
"""A list of document numbers a query, best first."""


@dataclass(frozen=True, eq=False)
class Scores:
    """One method on one haystack.

    places: where each query's document was found, int64[queries], from 0; 10 where it is not among the first ten.
    hub: how many queries the most successful document won.
    truncated: how many documents were longer than the method takes: their beginning counts.
    """

    places: NDArray[np.int64]
    hub: int
    truncated: int

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """1 for each query whose document came first, else 0."""
        first: NDArray[np.float64] = (self.places == 0).astype(np.float64)
        return first

    @property
    def ndcg(self) -> NDArray[np.float64]:
        """Each query's nDCG@10, with one document that answers it."""
        gains: NDArray[np.float64] = np.where(self.places < _DEPTH, 1 / np.log2(2 + self.places), 0.0)
        return gains


def evaluate_long(
    settings: Settings,
    lengths: Sequence[int],
    seeds: int,
    prose: Path | None = None,
    observe: Observer = lambda _: None,
) -> dict[str, Any]:
    """Measure an encoder on generated passkeys and needles of these nominal lengths, as JSON values.

    A row a task, length and method: accuracy of the first and nDCG@10 as means over seeds, their standard deviation,
    the largest hub, how many documents of all seeds were truncated, and the difference to truncation with its 95 %
    interval, paired by question. `plain_baselines` is false where truncation and windows are no plain model's: an
    exported encoder with `ntk` has none at hand. Raises UsageError where late chunking is not told how long chunks are.
    """
    config = settings.encoder.model_copy(update={"codes": ""})
    check_late(describe(config), settings.chunking)
    sentences = read_prose(prose)
    haystacks = [make(task, n, seed, sentences) for task in TASKS for n in lengths for seed in range(seeds)]
    observe(Progress("preparing the encoder"))
    measured: list[tuple[Haystack, dict[str, Scores]]] = []
    with _opened(config) as (encoder, plain):
        for tokenizer in (encoder.tokenizer, encoder.query_tokenizer):
            check_room(tokenizer, window_of(encoder))
        for number, haystack in enumerate(haystacks):
            observe(Progress("embedding", number, len(haystacks)))
            late = encoder.late
            own = measure_late(encoder, plain, haystack, settings) if late else measure(encoder, haystack)
            measured.append((haystack, measure_others(plain, haystack) | own))
    return {
        "encoder": config.model,
        "encoder_version": encoder.spec.version,
        "plain_baselines": not _slowed(plain),
        "window": window_of(encoder),
        "max_tokens": encoder.spec.max_tokens,
        "long": method_of(encoder),
        "seeds": seeds,
        "haystack": str(prose) if prose else "generated",
        "rows": rows(measured),
    }


@contextmanager
def _opened(config: EncoderConfig) -> Iterator[tuple[Encoder, Encoder]]:
    """The encoder, and the one by which truncation and windows are measured."""
    with ExitStack() as stack:
        encoder = stack.enter_context(closing(load_encoder(config)))
        if not _slowed(encoder) or is_exported(locate(config.model).folder):
            yield encoder, encoder
        else:
            usual = {"long": "split", "max_tokens": window_of(encoder), "attention_scaling": False}
            yield encoder, stack.enter_context(closing(load_encoder(config.model_copy(update=usual))))


def _slowed(encoder: Encoder) -> bool:
    """Whether its method changes short texts and queries too."""
    return encoder.spec.long is not None and encoder.spec.long.extension == NTK


def window_of(encoder: Encoder) -> int:
    """How many tokens an encoder's model takes by itself."""
    return encoder.spec.long.window if encoder.spec.long else encoder.spec.max_tokens


def method_of(encoder: Encoder) -> str:
    """What an encoder does with long texts, by name."""
    settings = encoder.spec.settings
    return f"{settings['long']}{', sharper' if settings['attention_scaling'] else ''}"


def measure(encoder: Encoder, haystack: Haystack) -> dict[str, Scores]:
    """Score an encoder's own method on a haystack, where it has one; vectors are held in memory."""
    most = encoder.spec.max_tokens
    return {method_of(encoder): _beginnings(encoder, haystack, most)} if most > window_of(encoder) else {}


def measure_late(
    encoder: Encoder, plain: Encoder, haystack: Haystack, settings: Settings
) -> dict[str, Scores]:
    """Score chunks out of the states of their documents, and the same chunks each by itself."""
    ids, owners = _chunks(haystack.documents, make_chunker(settings, encoder.spec, encoder.tokenizer))
    alone = plain.encode(ids, np.arange(len(ids)))
    return {
        "best chunk": _found(plain.encode_queries(haystack.queries), alone, owners),
        method_of(encoder): _found(
            encoder.encode_queries(haystack.queries), encoder.encode(ids, owners), owners
        ),
    }


def _chunks(texts: Sequence[str], chunker: Chunker) -> tuple[list[NDArray[np.int32]], NDArray[np.int64]]:
    """The chunks of texts, int32[n] each, and which text each is of, int64[chunks]."""
    same = {"document_id": "", "namespace": "", "metadata": "", "sequence": 0, "operation": "upsert"}
    given = [{**same, "text": text, "row": row} for row, text in enumerate(texts)]
    ids, owners = list[NDArray[np.int32]](), np.empty(0, np.int64)
    for batch in chunker.chunk(pa.RecordBatch.from_pylist(given, DOCUMENTS), ""):
        ids += token_arrays(batch.chunks)
        owners = np.concatenate([owners, batch.chunks.column("row").to_numpy()])
    return ids, owners


def measure_others(encoder: Encoder, haystack: Haystack) -> dict[str, Scores]:
    """Score words alone, and what an encoder's model does with its window; vectors are held in memory."""
    around, alone = encoder.tokenizer.around, np.arange(len(haystack.documents))
    pieces = [cut(encoder.tokenizer.encode(text), around, window_of(encoder)) for text in haystack.documents]
    owners = np.repeat(alone, [len(each) for each in pieces])
    vectors = encoder.encode([piece for each in pieces for piece in each], np.arange(len(owners)))
    means = np.stack([vectors[owners == text].mean(axis=0) for text in alone])
    queries = encoder.encode_queries(haystack.queries)
    return {
        "bm25": score(_by_words(haystack)),
        BASELINE: _beginnings(encoder, haystack, window_of(encoder)),
        MEAN_OF_WINDOWS: _found(queries, means / np.linalg.norm(means, axis=1, keepdims=True), alone),
        "best window": _found(queries, vectors, owners),
    }


def _beginnings(encoder: Encoder, haystack: Haystack, most: int) -> Scores:
    """With the beginnings of the documents, so many tokens at most."""
    texts = [encoder.tokenizer.encode(text) for text in haystack.documents]
    alone = np.arange(len(texts))
    vectors = encoder.encode([shorten(ids, encoder.tokenizer.around[1], most) for ids in texts], alone)
    longer = sum(len(ids) > most for ids in texts)
    return _found(encoder.encode_queries(haystack.queries), vectors, alone, longer)


def _found(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], owners: NDArray[np.int64], truncated: int = 0
) -> Scores:
    return score(rank(queries, vectors, owners, _DEPTH)[0].tolist(), truncated)


def _by_words(haystack: Haystack) -> Found:
    numbers = [str(number) for number in range(len(haystack.documents))]
    found = rank_by_words(haystack.documents, numbers, haystack.queries, _DEPTH)
    return [[int(number) for number in row] for row in found]


def shorten(ids: NDArray[np.int32], after: int, most: int) -> NDArray[np.int32]:
    """The beginning of an input int32[n], at most so many tokens of it; the special tokens at its end stay."""
    return ids if len(ids) <= most else np.concatenate([ids[: most - after], ids[len(ids) - after :]])


def score(found: Found, truncated: int = 0) -> Scores:
    """Scores of a ranking where query n is answered by document n, of which so many were truncated."""
    places = [row.index(query) if query in row else _DEPTH for query, row in enumerate(found)]
    winners = [row[0] for row in found if row]
    hub = max((winners.count(document) for document in set(winners)), default=0)
    return Scores(np.array(places, np.int64), hub, truncated)


def rows(measured: Sequence[tuple[Haystack, Mapping[str, Scores]]]) -> list[dict[str, Any]]:
    """A row a task, length and method, as JSON values, over the haystacks that the method was measured on.

    `measured`: the scores of each haystack by method, truncation's among them.
    """
    grouped: dict[tuple[Task, int, str], list[_Run]] = {}
    for haystack, scores in measured:
        for method, scored in scores.items():
            run = _Run(haystack.queries, scored, scores[BASELINE])
            grouped.setdefault((haystack.task, haystack.length, method), []).append(run)
    return [
        {"task": task, "length": length, "method": method, "seeds": len(runs)}
        | _summary(runs, plain=method == BASELINE)
        for (task, length, method), runs in grouped.items()
    ]


@dataclass(frozen=True, eq=False)
class _Run:
    """One method on one haystack, and truncation on the same."""

    queries: Sequence[str]
    scores: Scores
    baseline: Scores


def _summary(runs: Sequence[_Run], plain: bool) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, of in (("accuracy", "accuracy"), ("ndcg@10", "ndcg")):
        means = [float(getattr(run.scores, of).mean()) for run in runs]
        said |= {name: round(float(np.mean(means)), 4), f"{name}_sd": round(float(np.std(means)), 4)}
        said[f"{name}_gain"] = None if plain else _gain(runs, of)
    truncated = sum(run.scores.truncated for run in runs)
    return said | {"hub": max(run.scores.hub for run in runs), "truncated": truncated}


def _gain(runs: Sequence[_Run], of: str) -> list[float]:
    """The mean difference to truncation and its 95 % interval, over the questions of all seeds, drawn again.

    Seeds ask for some of the same hundred facts: what one question has in all of them is drawn together.
    """
    each = np.concatenate([getattr(run.scores, of) - getattr(run.baseline, of) for run in runs])
    found = paired(each, questions=[query for run in runs for query in run.queries])
    return [round(value, 4) for value in (found.mean, found.low, found.high)]


def read_lengths(text: str) -> list[int]:
    """Lengths out of "512,1024", each once; raises UsageError."""
    try:
        lengths = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 128:
        raise UsageError(
            f"--lengths {text!r}", "Whole numbers of 128 or more", "For example --lengths 512,1024,2048"
        )
    return lengths
