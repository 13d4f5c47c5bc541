"""An encoder measured on judged text: embed the documents as a run would, rank exactly, score the ranking."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.config import Settings
from pipeline.encoders import load_plain_encoder
from pipeline.errors import UsageError
from pipeline.evaluation.codes import JudgedVectors
from pipeline.evaluation.retrieval import rank, read_qrels, read_queries, retrieval_metrics
from pipeline.lane.embedding import embed_chunks
from pipeline.schemas import Observer, Progress
from pipeline.sources import Source, open_source

DEPTH = 100  # recall@100 looks no further


def evaluate_retrieval(
    documents: str, queries: Path, qrels: Path, settings: Settings, observe: Observer = lambda _: None
) -> dict[str, float | int]:
    """Return {"ndcg@10", "recall@100", "queries"}: documents ranked by their best chunk, every product computed.

    Documents are chunked as [chunking] says; a `title` column, where there is one, goes before the text unless other
    text columns are configured. All vectors are held in memory: 4 × chunks × dims bytes.
    """
    judged, _ = embed_judged(documents, queries, qrels, settings, observe)
    best, _ = rank(judged.queries, judged.documents, judged.owners, DEPTH)
    run = {
        query: [judged.ids[n] for n in row]
        for query, row in zip(judged.query_ids, best.tolist(), strict=True)
    }
    return retrieval_metrics(run, judged.qrels)


def embed_judged(
    documents: str,
    queries: Path,
    qrels: Path,
    settings: Settings,
    observe: Observer,
    check: Callable[[str], None] = lambda _version: None,
) -> tuple[JudgedVectors, str]:
    """Embed a judged set as a run would; returns the encoder's version, too, which `check` sees before the work."""
    query_ids, texts = read_queries(queries)
    judgements = read_qrels(qrels)
    observe(Progress("preparing the encoder"))
    encoder = load_plain_encoder(settings.encoder)
    try:
        check(encoder.spec.version)
        with tempfile.TemporaryDirectory(prefix="headwater-") as scratch:
            settings, source = open_judged(documents, settings, Path(scratch))
            chunks = embed_chunks(source, settings, encoder, observe)
        asked = encoder.encode_queries(texts)
    finally:
        encoder.close()
    judged = JudgedVectors(
        documents, chunks.vectors, chunks.owners, chunks.documents, asked, query_ids, judgements
    )
    return judged, encoder.spec.version


def open_judged(documents: str, settings: Settings, scratch: Path) -> tuple[Settings, Source]:
    """Open the documents with their titles; judged sets keep them apart, and half of them have none."""
    if settings.source.text == ("text",) and not settings.source.template:
        titled = settings.source.model_copy(update={"text": ("title", "text")})
        try:
            return settings.model_copy(update={"source": titled}), open_source(documents, titled, scratch)
        except UsageError:  # no such column; anything else is wrong again below, and said there
            pass
    return settings, open_source(documents, settings.source, scratch)
