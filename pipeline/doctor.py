"""The check-up before a run: each part is tried, and each failure says what to do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Settings
from pipeline.encoders import Encoder, EncoderSpec, describe_aspects, load_encoder
from pipeline.errors import HeadwaterError, SourceError
from pipeline.job import check_collection, make_chunker, make_contract
from pipeline.sources import open_source
from pipeline.stores import Purpose, open_store, store_exists


@dataclass(frozen=True)
class Check:
    """One part that was tried; the message says what was found, or what is wrong and what to do."""

    name: str
    ok: bool
    message: str


def examine(settings: Settings, uri: str | None) -> Iterator[Check]:
    """Try the parts a run needs, in order; writes nothing but the encoder's cache."""
    yield Check("config", True, "read, every key is known")
    if uri is not None:
        yield _try("source", lambda: _source(settings, uri))
    try:
        encoder = load_encoder(settings.encoder, settings.store.keep_vectors)
    except HeadwaterError as error:
        yield Check("encoder", False, str(error))
        return
    try:
        spec = encoder.spec
        yield Check("encoder", True, f"{spec.source}: {spec.dims} dims, version {spec.version[:12]}")
        if spec.codes:
            what = f"{spec.codes.bits} bits over {spec.codes.dims} dims, {spec.codes.bytes} bytes a chunk"
            yield Check("codes", True, f"{settings.encoder.codes}: {what}")
        if settings.aspects:
            yield _try("aspects", lambda: _aspects(settings, spec))
        yield Check("provider", True, encoder.provider)
        yield _try(
            "chunking", lambda: f"version {make_chunker(settings, encoder.spec, encoder.tokenizer).version}"
        )
        if settings.store.url:
            yield _try("store", lambda: _store(settings, encoder))
    finally:
        encoder.close()


def _try(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except (HeadwaterError, OSError) as error:
        return Check(name, False, str(error))


def _aspects(settings: Settings, main: EncoderSpec) -> str:
    found = describe_aspects(settings, main)
    return "; ".join(
        f"{name}: {spec.source}, {spec.dims} dims, version {spec.version[:12]}"
        for name, spec in found.items()
    )


def _source(settings: Settings, uri: str) -> str:
    with tempfile.TemporaryDirectory(prefix="headwater-") as scratch:
        source = open_source(uri, settings.source, Path(scratch))
    if source.unreadable:
        raise SourceError(
            f"{len(source.unreadable)} files cannot be read, the first: {source.unreadable[0].message}"
        )
    rows = "unknown" if source.rows is None else f"{source.rows:,}"
    return f"{source.uri}: {rows} rows in {len(source.splits)} splits"


def _store(settings: Settings, encoder: Encoder) -> str:
    if not store_exists(settings.store):
        return f"{settings.store.url} is empty; ingest makes it"
    soon = settings.store.model_copy(update={"retries": 1})  # who asks wants to know now
    store = open_store(soon, Purpose.CHECK)
    try:
        if not settings.store.collection:
            return f"{settings.store.url} answers"
        contract = make_contract(
            settings, encoder.spec, make_chunker(settings, encoder.spec, encoder.tokenizer).version
        )
        found = check_collection(store, settings, contract)
        return f"{found} takes this encoder" if found else f"no collection {settings.store.collection!r} yet"
    finally:
        store.close()
