"""How well vectors find what people judged relevant: exact ranking, nDCG and recall, judgement files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ir_measures
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UsageError

Qrels = Mapping[str, Mapping[str, int]]
"""Judgements: query id → document id → relevance; 0 and below is not relevant, higher is better."""

MEASURES = {"ndcg@10": ir_measures.nDCG @ 10, "recall@100": ir_measures.R @ 100}

_BLOCK_SCORES = 1 << 24  # float32 scores held at once, 64 MiB: large enough that the matrix product dominates


def rank(
    query_vectors: NDArray[np.float32],
    document_vectors: NDArray[np.float32],
    owners: NDArray[np.integer],
    k: int,
    block_scores: int = _BLOCK_SCORES,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rank documents by their best chunk's inner product: document numbers int64[q, n], scores float32[q, n].

    `query_vectors` float32[q, dims]; `document_vectors` float32[chunks, dims]; `owners` integer[chunks], each
    chunk's document by its number from 0, in any order. n is k, or the number of documents that have chunks
    where that is less. Best first; equal scores in the order of document numbers. Every product is computed,
    in blocks of about `block_scores` numbers: beyond them memory holds the result, and few integers a chunk.
    """
    if not len(query_vectors) or not len(document_vectors):
        return np.empty((len(query_vectors), 0), np.int64), np.empty((len(query_vectors), 0), np.float32)
    rows = np.argsort(owners, kind="stable")
    present, starts = np.unique(owners[rows], return_index=True)
    half = block_scores // 2
    step = max(1, half // len(present))
    numbers, scores = [], []
    for at in range(0, len(query_vectors), step):
        best = _best_chunks(query_vectors[at : at + step], document_vectors, rows, starts, half)
        columns, values = _top(best, k)
        numbers.append(present[columns])
        scores.append(values)
    return np.concatenate(numbers).astype(np.int64), np.concatenate(scores)


def _best_chunks(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    block_scores: int,
) -> NDArray[np.float32]:
    """Return each document's best score, float32[q, documents]; document i's rows begin at starts[i]."""
    best = np.full((len(queries), len(starts)), -np.inf, np.float32)
    # A block of chunks is held twice: as scores, and as the copy of its vectors.
    step = max(1, block_scores // max(len(queries), vectors.shape[1]))
    for at in range(0, len(rows), step):
        scores = queries @ vectors[rows[at : at + step]].T
        first = int(np.searchsorted(starts, at, side="right")) - 1  # the document that the block begins in
        last = int(np.searchsorted(starts, at + step, side="left"))
        inside = np.maximum(starts[first:last] - at, 0)
        np.maximum(best[:, first:last], np.maximum.reduceat(scores, inside, axis=1), out=best[:, first:last])
    return best


def _top(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the columns of the k best scores of each row, and those scores; ties by column."""
    k = min(k, scores.shape[1])
    columns = np.empty((len(scores), k), np.int64)
    if k:
        worst = np.partition(scores, -k, axis=1)[:, -k]
        for row, (values, least) in enumerate(zip(scores, worst, strict=True)):
            good = np.flatnonzero(values >= least)  # more than k where scores tie at the border
            columns[row] = good[np.argsort(-values[good], kind="stable")[:k]]
    return columns, np.take_along_axis(scores, columns, axis=1)


def retrieval_metrics(run: Mapping[str, Sequence[str]], qrels: Qrels) -> dict[str, float | int]:
    """Compute nDCG@10 and recall@100 as trec_eval does: means over the queries that have a relevant document.

    `run` holds each query's documents, each once, best first. A query without results counts as 0. nDCG's
    gain is the relevance itself (Järvelin & Kekäläinen 2002, trec_eval's ndcg_cut), so graded judgements
    count by grade; recall asks for relevance 1 or more.
    Raises UsageError where no query has a relevant document.
    """
    each = query_metrics(run, qrels)
    means = {name: sum(of[name] for of in each.values()) / len(each) for name in MEASURES}
    return {**means, "queries": len(each)}


def query_metrics(run: Mapping[str, Sequence[str]], qrels: Qrels) -> dict[str, dict[str, float]]:
    """What `retrieval_metrics` takes the means of: query id → measure → value, in the order of the judgements."""
    judged = {
        query: {document: max(0, relevance) for document, relevance in documents.items()}
        for query, documents in qrels.items()
        if any(relevance > 0 for relevance in documents.values())
    }
    if not judged:
        raise UsageError(
            f"judgements of {len(qrels)} queries, none of them with a relevant document",
            "A relevance above 0 for at least one document",
            "Check --qrels",
        )
    # trec_eval sorts by score and breaks ties by document id; scores that fall with the rank keep our order.
    scored = [
        ir_measures.ScoredDoc(query, document, float(-position))
        for query in judged
        for position, document in enumerate(run.get(query, ()))
    ]
    judgements = [
        ir_measures.Qrel(query, document, relevance)
        for query, documents in judged.items()
        for document, relevance in documents.items()
    ]
    each = {query: dict.fromkeys(MEASURES, 0.0) for query in judged}
    names = {measure: name for name, measure in MEASURES.items()}
    if scored:
        for metric in ir_measures.pytrec_eval.iter_calc(list(names), judgements, scored):
            each[metric.query_id][names[metric.measure]] = metric.value
    return each


def read_queries(file: Path) -> tuple[list[str], list[str]]:
    """Read a Parquet file with columns `id` and `text`: ids and texts, in the file's order.

    Raises UsageError for a missing column, a null, an id that comes twice, or a file that cannot be read.
    """
    table = read_columns(file, "queries", ("id", "text"))
    ids, texts = strings_of(table, "id", file), strings_of(table, "text", file)
    seen: set[str] = set()
    for query in ids:
        if query in seen:
            raise UsageError(
                f"query id {query!r} more than once in {file}", "One row a query", "Check --queries"
            )
        seen.add(query)
    return ids, texts


def read_qrels(file: Path) -> dict[str, dict[str, int]]:
    """Read judgements from a Parquet file with columns `query_id`, `document_id` and an integer `relevance`.

    A pair that is judged twice keeps the higher relevance. Raises UsageError as `read_queries` does.
    """
    table = read_columns(file, "qrels", ("query_id", "document_id", "relevance"))
    relevance = table["relevance"]
    if not pa.types.is_integer(relevance.type) or relevance.null_count:
        got = f"column 'relevance' of {file} with {relevance.null_count} nulls of type {relevance.type}"
        raise UsageError(got, "Integers without nulls: 0 not relevant, 1 and above relevant", "Check --qrels")
    qrels: dict[str, dict[str, int]] = {}
    pairs = zip(strings_of(table, "query_id", file), strings_of(table, "document_id", file), strict=True)
    grades: list[int] = relevance.to_numpy().tolist()
    for (query, document), grade in zip(pairs, grades, strict=True):
        judged = qrels.setdefault(query, {})
        judged[document] = max(grade, judged.get(document, grade))
    return qrels


def read_columns(file: Path, flag: str, columns: tuple[str, ...]) -> pa.Table:
    """Read these columns of the Parquet file that `--FLAG` names; raises UsageError where it has not all of them."""
    try:
        known = pq.read_schema(file).names
        missing = [name for name in columns if name not in known]
        if not missing:
            return pq.read_table(file, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise UsageError(
            f"{flag} {file} cannot be read: {error}", "A Parquet file", f"Check --{flag}"
        ) from None
    raise UsageError(
        f"{flag} {file} without {', '.join(map(repr, missing))}; its columns are {', '.join(known)}",
        f"Columns {', '.join(columns)}",
        "Rename the columns",
    )


def strings_of(table: pa.Table, name: str, file: Path) -> list[str]:
    """Return a column of strings; integers become decimal strings, as document ids do."""
    column = table[name]
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise UsageError(
            f"null in column {name!r} of {file}, row {row}", "A value in every row", "Remove the row"
        )
    try:
        if pa.types.is_floating(column.type) or pa.types.is_nested(column.type):
            raise pa.ArrowInvalid("neither strings nor integers")
        return [str(value) for value in column.cast(pa.string()).to_pylist()]
    except (pa.ArrowException, UnicodeDecodeError):
        got = f"column {name!r} of {file} of type {column.type}"
        raise UsageError(got, "Strings, or integers", "Convert the column") from None
