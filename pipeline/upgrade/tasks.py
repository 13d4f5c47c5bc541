"""Judged tasks that lie outside of the collection: a folder as BEIR lays it out, or a task of mteb.

Both encoders embed the task's own documents, chunked as the settings say, and rank them exactly.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import EncoderConfig, Settings, SourceConfig
from pipeline.errors import UsageError
from pipeline.evaluation import rank
from pipeline.evaluation.bm25 import rank_by_words
from pipeline.evaluation.judged import embed_judged
from pipeline.schemas import Observer
from pipeline.upgrade.asking import AT
from pipeline.upgrade.questions import Questions, read_questions

MTEB = "mteb:"


@dataclass(frozen=True)
class Task:
    """Documents (id, title, text), and queries with what is relevant to each."""

    name: str
    documents: tuple[tuple[str, str, str], ...]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def open_task(name: str) -> Task:
    """A folder with corpus.jsonl, queries.jsonl and qrels/test.tsv, or `mteb:NAME` where mteb is installed."""
    if name.startswith(MTEB):
        return of_mteb(_mteb_task(name.removeprefix(MTEB)), name)
    folder = Path(name)
    try:
        corpus = [(row["_id"], row.get("title", ""), row["text"]) for row in _lines(folder / "corpus.jsonl")]
        queries = {row["_id"]: row["text"] for row in _lines(folder / "queries.jsonl")}
        qrels: dict[str, dict[str, int]] = {}
        with (folder / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--task {name} cannot be read: {type(error).__name__}: {error}",
            "A folder as BEIR lays it out: corpus.jsonl, queries.jsonl, qrels/test.tsv; or mteb:NAME",
            "Check --task",
        ) from None
    return Task(name, tuple(corpus), queries, qrels)


def of_mteb(task: Any, name: str) -> Task:  # noqa: ANN401 - mteb's AbsTaskRetrieval, which we do not depend on
    """A retrieval task of mteb (2.x): its default subset, the split `test` or its only one."""
    task.load_data()
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    splits = next(iter(task.dataset.values()))
    data = splits["test"] if "test" in splits else next(iter(splits.values()))
    return Task(
        name,
        tuple((row["id"], row.get("title") or "", row["text"]) for row in data["corpus"]),
        {row["id"]: row["text"] for row in data["queries"]},
        {query: dict(documents) for query, documents in data["relevant_docs"].items()},
    )


@dataclass(frozen=True)
class TaskAnswers:
    """The best documents of each query, by either encoder and by words alone."""

    questions: Questions
    old: dict[str, list[str]]
    new: dict[str, list[str]]
    words: dict[str, list[str]]


def answer_task(
    task: Task, settings: Settings, old: EncoderConfig, new: EncoderConfig, observe: Observer
) -> TaskAnswers:
    """Embed a task's documents and queries by both encoders, and rank. Holds all vectors of one encoder in memory."""
    with tempfile.TemporaryDirectory(prefix="headwater-") as scratch:
        files = _write(task, Path(scratch))
        questions = replace(read_questions(files[1], files[2]), source=task.name)
        before, after = (_rank(files, settings, encoder, observe) for encoder in (old, new))
    texts = [f"{title}\n{text}" for _, title, text in task.documents]
    words = rank_by_words(texts, [id for id, _, _ in task.documents], list(questions.texts.values()), AT)
    return TaskAnswers(questions, before, after, dict(zip(questions.texts, words, strict=True)))


def _rank(
    files: tuple[Path, Path, Path], settings: Settings, encoder: EncoderConfig, observe: Observer
) -> dict[str, list[str]]:
    source = SourceConfig(text=("title", "text"))
    how = settings.model_copy(update={"encoder": encoder, "source": source})
    judged, _ = embed_judged(str(files[0]), files[1], files[2], how, observe)
    best, _ = rank(judged.queries, judged.documents, judged.owners, AT)
    rows = zip(judged.query_ids, best.tolist(), strict=True)
    return {query: [judged.ids[n] for n in row] for query, row in rows}


def _write(task: Task, folder: Path) -> tuple[Path, Path, Path]:
    files = folder / "documents.parquet", folder / "queries.parquet", folder / "qrels.parquet"
    ids, titles, texts = zip(*task.documents, strict=True) if task.documents else ((), (), ())
    pairs = [(q, d, grade) for q, documents in task.qrels.items() for d, grade in documents.items()]
    asked = [query for query, _, _ in pairs]
    tables = (
        pa.table({"id": ids, "title": titles, "text": texts}),
        pa.table({"id": list(task.queries), "text": list(task.queries.values())}),
        pa.table(
            {
                "query_id": asked,
                "document_id": [d for _, d, _ in pairs],
                "relevance": [int(g) for _, _, g in pairs],
            }
        ),
    )
    for table, file in zip(tables, files, strict=True):
        pq.write_table(table, file)
    return files


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _mteb_task(name: str) -> Any:  # noqa: ANN401 - see of_mteb
    try:
        import mteb
    except ImportError:
        raise UsageError(
            f"--task {MTEB}{name}, and mteb is not installed", "The package mteb", "pip install mteb"
        ) from None
    return mteb.get_task(name)
