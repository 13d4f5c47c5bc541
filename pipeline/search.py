"""The query side: reads a collection's contract, loads the encoder it names, searches.

`from pipeline.search import Reader` is what a RAG backend needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.codes import Binarizer, load_codes, query_rows
from pipeline.config import DEFAULT_ENCODER, EncoderConfig, QuantizationConfig, StoreConfig
from pipeline.encoders import Encoder, codes_folder, load_plain_encoder
from pipeline.errors import CollectionMismatch, EncoderError
from pipeline.stores import (
    DOCUMENT_ID,
    NAMESPACE,
    CodedQueries,
    Filter,
    Hit,
    Profile,
    Purpose,
    Store,
    collection,
    nearest,
    nearest_by_codes,
    open_collection,
    parse_filter,
    profile_named,
)
from pipeline.versions import Contract

_DOCUMENT = [NAMESPACE, DOCUMENT_ID]
_PAGE = 256  # points retrieved by id in one request


@dataclass(frozen=True)
class Result:
    """A chunk that was found. `start` and `end` are code points into the document's text."""

    document_id: str
    chunk_index: int
    score: float
    text: str
    start: int
    end: int
    metadata: dict[str, Any]
    encoder_version: str

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Coded:
    """How a collection of codes is asked: by which binarizer, and how many candidates a result are ranked again."""

    binarizer: Binarizer
    oversampling: float
    code_queries: bool


class Reader:
    """Searches one collection with the encoder its contract names; refuses any other.

    May be used from several threads at once. The `_async` methods search in a thread of the loop's own pool, so that
    the event loop goes on meanwhile.
    """

    def __init__(
        self,
        store: Store,
        physical: str,
        contract: Contract,
        encoder: Encoder,
        coded: _Coded | None = None,
    ) -> None:
        self.contract = contract
        self._coded = coded
        self._store = store
        self._collection = physical
        self._encoder = encoder
        self._profile = profile_named(contract.profile)

    @classmethod
    def open(cls, store_config: StoreConfig, encoder_config: EncoderConfig | None = None) -> Self:
        """Open the store, read the contract behind the alias and load its encoder.

        What the encoder is comes from the contract. `encoder_config` says how it is run (provider, threads, cache)
        and, where it names a model or codes, where they lie now; their version must be the contract's all the same.
        Raises CollectionMismatch where the collection is missing or the encoder is another one.
        """
        alias = store_config.collection
        store, physical = open_collection(store_config, Purpose.SEARCH)
        try:
            contract = Contract.read(collection.read_metadata(store, physical), alias)
            how = encoder_config or EncoderConfig()
            encoder = _load(contract, how, alias)
            coded = _load_coded(contract, how, store_config, encoder.spec.version)
            spec = encoder.spec.coded(coded.binarizer) if coded else encoder.spec
            contract.check_encoder(spec.version, spec.source, alias)
            config = _vectors_of(contract, store_config)
            collection.check_vectors(store, physical, config, contract.dims, spec.codes)
        except BaseException:
            store.close()
            raise
        return cls(store, physical, contract, encoder, coded)

    def search(
        self, query: str, limit: int = 10, where: Sequence[str] = (), by_document: bool = False
    ) -> list[Result]:
        """The `limit` chunks nearest to the query, best first; with `by_document` each document's best chunk.

        `where` holds conditions on metadata, all of which must hold: `year>=2000`, `lang=en|de`.
        """
        return self.search_many([query], limit, where, by_document)[0]

    def search_many(
        self, queries: Sequence[str], limit: int = 10, where: Sequence[str] = (), by_document: bool = False
    ) -> list[list[Result]]:
        """One list of results a query, in the order of the queries."""
        if not queries:
            return []
        vectors = self._encoder.encode_queries(queries)
        usable = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        if not usable.all():
            raise EncoderError(
                f"the encoder gave query {queries[int(np.argmin(usable))][:80]!r} a vector that is zero or holds NaN "
                "or infinity",
                "A finite vector with a direction",
                "Check the model with headwater doctor",
            )
        condition = parse_filter(where, self._profile)
        if not by_document:
            found = self._nearest(vectors, limit, condition)
            return [[_result(hit, hit.payload, self._profile) for hit in hits] for hits in found]
        return self._best_of_documents(vectors, limit, condition)

    async def search_async(
        self, query: str, limit: int = 10, where: Sequence[str] = (), by_document: bool = False
    ) -> list[Result]:
        """`search` for an event loop."""
        return await asyncio.to_thread(self.search, query, limit, where, by_document)

    async def search_many_async(
        self, queries: Sequence[str], limit: int = 10, where: Sequence[str] = (), by_document: bool = False
    ) -> list[list[Result]]:
        """`search_many` for an event loop."""
        return await asyncio.to_thread(self.search_many, queries, limit, where, by_document)

    def close(self) -> None:
        """Close the store and free the encoder."""
        self._encoder.close()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _nearest(
        self,
        vectors: NDArray[np.float32],
        limit: int,
        condition: Filter | None,
        with_payload: bool | Sequence[str] = True,
    ) -> list[list[Hit]]:
        name = self.contract.vector_name
        if self._coded is None or self.contract.codes is None:
            return nearest(self._store, self._collection, vectors, limit, condition, name, with_payload)
        queries = CodedQueries(
            query_rows(self._coded.binarizer, vectors, self._coded.code_queries),
            vectors if self.contract.codes.keep_vectors else None,
            name,
            self._coded.oversampling,
        )
        return nearest_by_codes(self._store, self._collection, queries, limit, condition, with_payload)

    def _best_of_documents(
        self, vectors: NDArray[np.float32], limit: int, condition: Filter | None
    ) -> list[list[Result]]:
        """Ask for ever more chunks until enough documents are among them, or there are no more; read those alone."""
        best: list[list[Hit]] = [[] for _ in range(len(vectors))]
        asking, depth = list(range(len(vectors))), 2 * limit
        while asking:
            unsatisfied = []
            found = self._nearest(vectors[asking], depth, condition, _DOCUMENT)
            for query, hits in zip(asking, found, strict=True):
                best[query] = _best(hits)[:limit]
                if len(best[query]) < limit and len(hits) == depth:
                    unsatisfied.append(query)
            asking, depth = unsatisfied, 2 * depth
        payloads = self._payloads({hit.id for hits in best for hit in hits})
        return [
            [_result(hit, payloads[hit.id], self._profile) for hit in hits if hit.id in payloads]
            for hits in best
        ]

    def _payloads(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The payloads of these points; a point deleted meanwhile is left out."""
        wanted = sorted(ids)
        pages = (wanted[start : start + _PAGE] for start in range(0, len(wanted), _PAGE))
        found = (record for page in pages for record in self._store.retrieve(self._collection, page))
        return {str(record.id): record.payload or {} for record in found}


def _vectors_of(contract: Contract, config: StoreConfig) -> StoreConfig:
    """The vectors that the contract promises, which readers need not configure."""
    promised: dict[str, Any] = {"vector_name": contract.vector_name, "distance": contract.distance}
    if contract.codes:
        promised |= {"keep_vectors": contract.codes.keep_vectors, "quantization": QuantizationConfig()}
    return config.model_copy(update=promised)


def _load_coded(
    contract: Contract, how: EncoderConfig, config: StoreConfig, encoder_version: str
) -> _Coded | None:
    """The binarizer of the collection's codes, from where the contract says or `how`; None where there are none."""
    held = contract.codes
    if held is None:
        if how.codes:
            raise CollectionMismatch(
                f"encoder.codes is {how.codes!r}, and collection {config.collection!r} holds vectors without codes",
                "Codes for a collection of codes",
                "Leave --codes out, or ingest with it into another --collection",
            )
        return None
    folder = codes_folder(how) if how.codes else Path(held.folder)
    try:
        binarizer = load_codes(folder, encoder_version)
    except EncoderError as error:
        if how.codes:
            raise
        moved = f"{error.do}; if the folder has moved, say where it is with --codes"
        raise type(error)(error.got, error.need, moved) from error
    here = replace(held, folder=str(folder), fingerprint=binarizer.fingerprint)
    contract.check_codes(here, config.collection)
    return _Coded(binarizer, config.oversampling, config.code_queries)


def _best(hits: Iterable[Hit]) -> list[Hit]:
    """The first hit of each document, in order."""
    best: dict[tuple[str, str], Hit] = {}
    for hit in hits:
        ours = hit.payload["headwater"]
        best.setdefault((ours["namespace"], ours["document_id"]), hit)
    return list(best.values())


def _result(hit: Hit, payload: dict[str, Any], profile: Profile) -> Result:
    ours = payload["headwater"]
    text, metadata = profile.read(payload)
    return Result(
        document_id=ours["document_id"],
        chunk_index=ours["chunk_index"],
        score=hit.score,
        text=text,
        start=ours["start"],
        end=ours["end"],
        metadata=metadata,
        encoder_version=ours["encoder_version"],
    )


def _load(contract: Contract, how: EncoderConfig, alias: str) -> Encoder:
    """The contract's encoder, run as `how` says."""
    try:
        return load_plain_encoder(_encoder_of(contract, how))
    except EncoderError as error:
        if how.model != DEFAULT_ENCODER:
            raise
        raise type(error)(
            f"the encoder of collection {alias!r} cannot be loaded: {error.got}",
            error.need,
            f"{error.do}; if the model has moved, say where it is with --encoder",
        ) from error


def _encoder_of(contract: Contract, how: EncoderConfig) -> EncoderConfig:
    return how.model_copy(
        update={
            "model": contract.model if how.model == DEFAULT_ENCODER else how.model,
            "precision": contract.precision,
            "max_tokens": contract.max_tokens,
            "document_prompt": contract.document_prompt,
            "query_prompt": contract.query_prompt,
        }
    )
