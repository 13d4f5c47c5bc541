"""One judged set embedded by two encoders, and the matrix of all that a bridge between them offers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipeline.config import Settings
from pipeline.encoders import Encoder, describe, load_plain_encoder
from pipeline.evaluation.codes import JudgedVectors
from pipeline.evaluation.judged import open_judged
from pipeline.evaluation.retrieval import read_qrels, read_queries
from pipeline.evaluation.versions import JudgedPair, measure_versions, ways_of
from pipeline.lane.embedding import ChunkTexts, embed_texts, read_chunks
from pipeline.schemas import Observer, Progress
from pipeline.versions import load_bridge


def evaluate_versions(
    old: str,
    new: str,
    bridge: Path,
    documents: str,
    queries: Path,
    qrels: Path,
    settings: Settings,
    observe: Observer = lambda _: None,
) -> dict[str, Any]:
    """The whole matrix of two encoders (folders or hub ids) and a bridge folder on one judged set, as JSON values.

    Documents are chunked for the old encoder, as a collection that is to be upgraded was; the new one embeds the same
    chunks. All vectors are in memory. Raises EncoderError before the work where the bridge joins other encoders.
    """
    before, after = settings_of(settings, old), settings_of(settings, new)
    versions = [describe(each.encoder).plain.version for each in (before, after)]
    joined = load_bridge(bridge, *versions)
    pair = embed_pair(before, after, documents, queries, qrels, observe)
    observe(Progress("comparing"))
    said = {
        "documents": documents,
        "old": {"model": joined.spec.old_model, "version": versions[0], "dims": joined.spec.old_dims},
        "new": {"model": joined.spec.new_model, "version": versions[1], "dims": joined.spec.new_dims},
        "bridge": {"folder": str(bridge), "fingerprint": joined.fingerprint, "held_out": joined.figures},
        "chunks": len(pair.old.documents),
    }
    return said | measure_versions(pair, list(ways_of(joined, pair)))


def embed_pair(
    before: Settings, after: Settings, documents: str, queries: Path, qrels: Path, observe: Observer
) -> JudgedPair:
    """Embed a judged set by the encoders of two settings, one after the other, chunked for the first."""
    query_ids, asked = read_queries(queries)
    judgements = read_qrels(qrels)

    def judged(encoder: Encoder, chunks: ChunkTexts) -> JudgedVectors:
        vectors = embed_texts(chunks.texts, encoder, observe)
        found = encoder.encode_queries(asked)
        return JudgedVectors(
            documents, vectors, chunks.owners, chunks.documents, found, query_ids, judgements
        )

    observe(Progress("preparing the encoders"))
    encoder = load_plain_encoder(before.encoder)
    try:
        with tempfile.TemporaryDirectory(prefix="headwater-") as scratch:
            titled, source = open_judged(documents, before, Path(scratch))
            chunks = read_chunks(source, titled, encoder, observe)
        old = judged(encoder, chunks)
    finally:
        encoder.close()
    encoder = load_plain_encoder(after.encoder)
    try:
        return JudgedPair(old, judged(encoder, chunks))
    finally:
        encoder.close()


def settings_of(settings: Settings, model: str) -> Settings:
    """The same settings with another encoder, its vectors as they are."""
    encoder = settings.encoder.model_copy(update={"model": model, "codes": ""})
    return settings.model_copy(update={"encoder": encoder})
