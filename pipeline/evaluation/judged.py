"""An encoder measured on judged text: embed the documents as a run would, rank exactly, score the ranking."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.config import Settings
from pipeline.encoders import load_plain_encoder
from pipeline.errors import UsageError
from pipeline.evaluation.retrieval import rank, read_qrels, read_queries, retrieval_metrics
from pipeline.lane.embedding import embed_chunks
from pipeline.schemas import Observer
from pipeline.sources import Source, open_source

DEPTH = 100  # recall@100 looks no further


def evaluate_retrieval(
    documents: str, queries: Path, qrels: Path, settings: Settings, observe: Observer = lambda _: None
) -> dict[str, float | int]:
    """Return {"ndcg@10", "recall@100", "queries"}: documents ranked by their best chunk, every product computed.

    Documents are chunked as [chunking] says; a `title` column, where there is one, goes before the text unless other
    text columns are configured. All vectors are held in memory: 4 × chunks × dims bytes.
    """
    query_ids, texts = read_queries(queries)
    judgements = read_qrels(qrels)
    encoder = load_plain_encoder(settings.encoder)
    try:
        with tempfile.TemporaryDirectory(prefix="headwater-") as scratch:
            settings, source = _open(documents, settings, Path(scratch))
            chunks = embed_chunks(source, settings, encoder, observe)
        best, _ = rank(encoder.encode_queries(texts), chunks.vectors, chunks.owners, DEPTH)
    finally:
        encoder.close()
    run = {
        query: [chunks.documents[n] for n in row] for query, row in zip(query_ids, best.tolist(), strict=True)
    }
    return retrieval_metrics(run, judgements)


def _open(documents: str, settings: Settings, scratch: Path) -> tuple[Settings, Source]:
    """Open the documents with their titles; judged sets keep them apart, and half of them have none."""
    if settings.source.text == ("text",) and not settings.source.template:
        titled = settings.source.model_copy(update={"text": ("title", "text")})
        try:
            return settings.model_copy(update={"source": titled}), open_source(documents, titled, scratch)
        except UsageError:  # no such column; anything else is wrong again below, and said there
            pass
    return settings, open_source(documents, settings.source, scratch)
