"""A physical collection searched with the encoder its contract names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.codes import Binarizer, load_codes, query_rows
from pipeline.config import DEFAULT_ENCODER, EncoderConfig, QuantizationConfig, StoreConfig
from pipeline.encoders import Encoder, codes_folder, describe, load_plain_encoder
from pipeline.errors import CollectionMismatch, EncoderError
from pipeline.stores import (
    DOCUMENT_ID,
    NAMESPACE,
    CodedQueries,
    Filter,
    Hit,
    Store,
    collection,
    nearest,
    nearest_by_codes,
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
    namespace: str
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
class Coded:
    """How a collection of codes is asked: by which binarizer, and how many candidates a result are ranked again."""

    binarizer: Binarizer
    oversampling: float
    code_queries: bool


class Searcher:
    """One physical collection and the encoder its contract names: what a search is answered by.

    May be used from several threads at once.
    """

    def __init__(
        self,
        store: Store,
        physical: str,
        contract: Contract,
        encoder: Encoder,
        coded: Coded | None = None,
    ) -> None:
        self.physical = physical
        self.contract = contract
        self.encoder = encoder
        self._store = store
        self._coded = coded
        self._profile = profile_named(contract.profile)

    @classmethod
    def open(
        cls, store: Store, physical: str, store_config: StoreConfig, how: EncoderConfig, vector: str = ""
    ) -> Self:
        """Read the collection's contract and load the encoder of the vectors called `vector`; "": the main one.

        What the encoder is comes from the contract. `how` says how it is run (provider, threads, cache) and, where it
        names a model or codes, where they lie now; their version must be the contract's all the same.
        Raises CollectionMismatch where the encoder is another one, and for a vector that points do not have.
        """
        alias = store_config.collection
        whole = Contract.read(collection.read_metadata(store, physical), alias)
        contract = whole.of_vector(vector, alias)
        wanted = contract.encoder_config(how)
        with _named(how, alias):
            spec = describe(wanted)  # all is checked by this: another encoder is not even exported
        coded = _load_coded(contract, how, store_config, spec.version)
        spec = spec.coded(coded.binarizer) if coded else spec
        if contract is whole:
            contract.check_encoder(spec.version, spec.source, alias)
        else:
            whole.aspects[vector].check_encoder(spec.version, spec.source, vector, alias)
        config = _vectors_of(contract, store_config)
        collection.check_vectors(store, physical, config, contract.dims, spec.codes)
        with _named(how, alias):
            encoder = load_plain_encoder(wanted)
        return cls(store, physical, contract, encoder, coded)

    def embed(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """float32[n, dims] of n queries; raises EncoderError for one that is zero, NaN or infinite."""
        vectors = self.encoder.encode_queries(queries)
        usable = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        if not usable.all():
            raise EncoderError(
                f"the encoder gave query {queries[int(np.argmin(usable))][:80]!r} a vector that is zero or holds NaN "
                "or infinity",
                "A finite vector with a direction",
                "Check the model with headwater doctor",
            )
        return vectors

    def find(
        self,
        vectors: NDArray[np.float32],
        limit: int = 10,
        where: Sequence[str] = (),
        by_document: bool = False,
        exact: bool = False,
    ) -> list[list[Result]]:
        """The `limit` chunks, or each document's best chunk, nearest to each of `vectors` (float32[n, dims]).

        `exact`: without the store's graph, every vector compared.
        """
        condition = parse_filter(where, self._profile)
        if by_document:
            return self._best_of_documents(vectors, limit, condition, exact)
        found = self._nearest(vectors, limit, condition, exact)
        return [[self._result(hit, hit.payload) for hit in hits] for hits in found]

    def close(self) -> None:
        """Free the encoder; the store is its owner's."""
        self.encoder.close()

    def _nearest(
        self,
        vectors: NDArray[np.float32],
        limit: int,
        condition: Filter | None,
        exact: bool,
        with_payload: bool | Sequence[str] = True,
    ) -> list[list[Hit]]:
        name = self.contract.vector_name
        if self._coded is None or self.contract.codes is None:
            return nearest(self._store, self.physical, vectors, limit, condition, name, with_payload, exact)
        queries = CodedQueries(
            query_rows(self._coded.binarizer, vectors, self._coded.code_queries),
            vectors if self.contract.codes.keep_vectors else None,
            name,
            self._coded.oversampling,
        )
        return nearest_by_codes(self._store, self.physical, queries, limit, condition, with_payload, exact)

    def _best_of_documents(
        self, vectors: NDArray[np.float32], limit: int, condition: Filter | None, exact: bool
    ) -> list[list[Result]]:
        """Ask for ever more chunks until enough documents are among them, or there are no more; read those alone."""
        best: list[list[Hit]] = [[] for _ in range(len(vectors))]
        asking, depth = list(range(len(vectors))), 2 * limit
        while asking:
            unsatisfied = []
            found = self._nearest(vectors[asking], depth, condition, exact, _DOCUMENT)
            for query, hits in zip(asking, found, strict=True):
                best[query] = _best(hits)[:limit]
                if len(best[query]) < limit and len(hits) == depth:
                    unsatisfied.append(query)
            asking, depth = unsatisfied, 2 * depth
        payloads = self._payloads({hit.id for hits in best for hit in hits})
        return [[self._result(hit, payloads[hit.id]) for hit in hits if hit.id in payloads] for hits in best]

    def _payloads(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The payloads of these points; a point deleted meanwhile is left out."""
        wanted = sorted(ids)
        pages = (wanted[start : start + _PAGE] for start in range(0, len(wanted), _PAGE))
        found = (record for page in pages for record in self._store.retrieve(self.physical, page))
        return {str(record.id): record.payload or {} for record in found}

    def _result(self, hit: Hit, payload: dict[str, Any]) -> Result:
        ours, contract = payload["headwater"], self.contract
        text, metadata = self._profile.read(payload)
        made_by = ours["encoder_version"]  # of the main vector
        return Result(
            document_id=ours["document_id"],
            namespace=ours["namespace"],
            chunk_index=ours["chunk_index"],
            score=hit.score,
            text=text,
            start=ours["start"],
            end=ours["end"],
            metadata=metadata,
            encoder_version=made_by if made_by in contract.encoder_versions else contract.encoder_version,
        )


def _vectors_of(contract: Contract, config: StoreConfig) -> StoreConfig:
    """The vectors that the contract promises, which readers need not configure."""
    promised: dict[str, Any] = {"vector_name": contract.vector_name, "distance": contract.distance}
    if contract.codes:
        promised |= {"keep_vectors": contract.codes.keep_vectors, "quantization": QuantizationConfig()}
    return config.model_copy(update=promised)


def _load_coded(
    contract: Contract, how: EncoderConfig, config: StoreConfig, encoder_version: str
) -> Coded | None:
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
    return Coded(binarizer, config.oversampling, config.code_queries)


def _best(hits: Iterable[Hit]) -> list[Hit]:
    """The first hit of each document, in order."""
    best: dict[tuple[str, str], Hit] = {}
    for hit in hits:
        ours = hit.payload["headwater"]
        best.setdefault((ours["namespace"], ours["document_id"]), hit)
    return list(best.values())


@contextmanager
def _named(how: EncoderConfig, alias: str) -> Iterator[None]:
    """Say of a model that is not where the contract says whose it is, and that it may be elsewhere."""
    try:
        yield
    except EncoderError as error:
        if how.model != DEFAULT_ENCODER:
            raise
        raise type(error)(
            f"the encoder of collection {alias!r} cannot be loaded: {error.got}",
            error.need,
            f"{error.do}; if the model has moved, say where it is with --encoder",
        ) from error
