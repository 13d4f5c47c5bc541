"""A bridge fitted from documents: a sample of their chunks, and a sentence of each, embedded by both encoders."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.chunking.sentences import whole_sentences
from pipeline.config import Settings
from pipeline.encoders import EncoderSpec, describe, load_plain_encoder
from pipeline.errors import EncoderError, UsageError
from pipeline.lane.embedding import draw_chunks, embed_texts
from pipeline.schemas import Observer, Progress
from pipeline.versions import BridgeOptions, fit_bridge, save_bridge
from pipeline.versions.bridge_folder import SPEC
from pipeline.versions.fitting import LEAST_TEXTS


def build_bridge(
    before: Settings,
    after: Settings,
    sample: str,
    out: Path,
    observe: Observer,
    *,
    texts: int,
    seed: int,
    trained: bool,
) -> dict[str, Any]:
    """Fit a bridge between the encoders of two settings on `texts` chunks of a sample, drawn at random.

    A crash leaves no bridge. Raises EncoderError for the same encoder twice or too few chunks, UsageError where `out`
    holds a bridge already. Returns the report as JSON values.
    """
    since = time.perf_counter()
    observe(Progress("preparing the encoders"))
    old, new = _described(before, after, out)
    with closing(load_plain_encoder(before.encoder)) as encoder:
        chunks = draw_chunks(sample, before, encoder, texts, seed, LEAST_TEXTS, observe)
        sentences = [_sentence(text, np.random.default_rng([seed, n])) for n, text in enumerate(chunks)]
        first = embed_texts(chunks, encoder, observe), encoder.encode_queries(sentences)
    with closing(load_plain_encoder(after.encoder)) as encoder:
        second = embed_texts(chunks, encoder, observe), encoder.encode_queries(sentences)
    options = BridgeOptions(old.version, new.version, old.source, new.source, seed, trained)
    asked = first[1], second[1]
    bridge = fit_bridge(
        first[0], second[0], options, asked, lambda method: observe(Progress(f"fitting: {method}"))
    )
    save_bridge(bridge, out)
    return {
        "out": str(out),
        "fingerprint": bridge.fingerprint,
        "texts": len(chunks),
        "old": {"model": old.source, "version": old.version, "dims": old.dims},
        "new": {"model": new.source, "version": new.version, "dims": new.dims},
        "document": bridge.spec.document,
        "query": bridge.spec.query,
        "held_out": bridge.figures,
        "seconds": round(time.perf_counter() - since, 1),
    }


def _described(before: Settings, after: Settings, out: Path) -> tuple[EncoderSpec, EncoderSpec]:
    """Both encoders without codes; see `build_bridge` for what is raised."""
    if (out / SPEC).exists():
        raise UsageError(f"{out} holds a bridge already", "A new folder", "Choose another --out")
    old, new = (describe(settings.encoder).plain for settings in (before, after))
    if old.version == new.version:
        raise EncoderError(
            f"{old.source} and {new.source} are one encoder, version {old.version[:12]}",
            "Two encoders of different versions",
            "Nothing has to be bridged: their vectors can be compared",
        )
    return old, new


def _sentence(text: str, generator: np.random.Generator) -> str:
    """One of a chunk's sentences, of a question's length rather than a chunk's; the chunk where it has none."""
    whole = whole_sentences(text)
    return str(generator.choice(whole)) if whole else text
