"""The reader: by chunk and by document, from many threads and from an event loop."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from pipeline.config import EncoderConfig, StoreConfig
from pipeline.errors import StoreUnavailable
from pipeline.schemas import point_id
from pipeline.search import Reader, Searcher
from pipeline.search.following import Following
from pipeline.stores import Points, Store, collection, open_store, profile_named
from pipeline.versions import Contract

DIMS = 16
DOCUMENTS = 12
CHUNKS = 9


def vector(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=DIMS).astype(np.float32)


class Fake:
    """An encoder that draws a vector by the text, and takes its time if asked to."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.running = self.most = 0
        self._lock = threading.Lock()

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(self.seconds)
        with self._lock:
            self.running -= 1
        return np.stack([vector(query) for query in queries])

    def close(self) -> None:
        pass


class Watched:
    """A store that notes what payloads were asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked: list[object] = []
        self.params: list[object] = []
        self.retrieved: list[int] = []
        self.vanishing: str | None = None

    def __getattr__(self, name: str):
        return getattr(self._store, name)

    def query_batch_points(self, name, requests):
        self.asked += [request.with_payload for request in requests]
        self.params += [request.params for request in requests]
        return self._store.query_batch_points(name, requests)

    def retrieve(self, name, ids, *more):
        self.retrieved.append(len(ids))
        if self.vanishing:
            self._store.delete(name, [self.vanishing])
        return self._store.retrieve(name, ids, *more)


@pytest.fixture(params=["plain", "llamaindex"])
def reader(request, tmp_path) -> Iterator[Reader]:
    config = StoreConfig(url=f"edge:{tmp_path}", collection="docs", profile=request.param)
    contract = Contract("v", "m", "fp32", 8, "", "", "c", "", DIMS, "cosine", request.param)
    store = Watched(open_store(config))
    physical = collection.create(store, "docs", config, DIMS, contract.metadata())
    ids, rows, payloads = [], [], []
    for document in range(DOCUMENTS):
        for chunk in range(CHUNKS):
            name, text = f"d{document}", f"chunk {chunk} of {document}"
            ids.append(point_id("", name, chunk))
            rows.append(vector(text))
            ours = {"document_id": name, "namespace": "", "chunk_index": chunk, "chunk_count": CHUNKS}
            ours |= {"start": 0, "end": len(text), "sequence": 0, "encoder_version": "v"}
            payloads.append(profile_named(request.param).write(ids[-1], text, {"n": document}, ours))
    store.upsert(physical, Points(ids, {"": np.stack(rows)}, payloads))
    searcher = Searcher(store, physical, contract, Fake())
    with Reader(store, Following(store, config, EncoderConfig(), searcher)) as opened:
        yield opened


def expected(query: str, limit: int, by_document: bool = False, least: int = 0) -> list[tuple[str, int]]:
    """(document, chunk) by brute force."""
    asked = vector(query) / np.linalg.norm(vector(query))
    scored = []
    for document in range(least, DOCUMENTS):
        for chunk in range(CHUNKS):
            row = vector(f"chunk {chunk} of {document}")
            scored.append((-(row @ asked) / np.linalg.norm(row), f"d{document}", chunk))
    found, seen = [], set()
    for _, document, chunk in sorted(scored):
        if not by_document or document not in seen:
            found.append((document, chunk))
        seen.add(document)
    return found[:limit]


def pairs(results) -> list[tuple[str, int]]:
    return [(one.document_id, one.chunk_index) for one in results]


QUERIES = [f"query {n}" for n in range(40)]


def test_the_nearest_chunks_and_each_documents_best(reader):
    for query, found in zip(QUERIES, reader.search_many(QUERIES, 7), strict=True):
        assert pairs(found) == expected(query, 7)
        assert all(one.text == f"chunk {one.chunk_index} of {one.document_id[1:]}" for one in found)
        assert all(one.metadata == {"n": int(one.document_id[1:])} for one in found)
    for query, found in zip(QUERIES, reader.search_many(QUERIES, 7, by_document=True), strict=True):
        assert pairs(found) == expected(query, 7, by_document=True)
        assert all(one.text == f"chunk {one.chunk_index} of {one.document_id[1:]}" for one in found)
    found = reader.search("query 1", 50, ["n>=4"], by_document=True)
    assert pairs(found) == expected("query 1", 50, by_document=True, least=4)
    assert reader.search_many([]) == []


def test_by_document_only_the_winners_are_read(reader):
    reader.search_many(QUERIES, 8, by_document=True)
    assert len(reader._store.asked) > len(QUERIES)  # some had to ask again
    assert all("headwater.document_id" in keys for keys in reader._store.asked)
    assert max(reader._store.retrieved) <= 256
    reader._store.retrieved.clear()
    reader.search("query 0", 3, by_document=True)
    assert reader._store.retrieved == [3]


def test_an_exact_search_goes_round_the_graph(reader):
    with reader._following.searcher() as searcher:
        vectors = searcher.embed(QUERIES[:3])
        for by_document in (False, True):
            exact = searcher.find(vectors, 5, by_document=by_document, exact=True)
            assert [pairs(one) for one in exact] == [expected(q, 5, by_document) for q in QUERIES[:3]]
    assert all(params is not None and params.exact for params in reader._store.params)
    reader._store.params.clear()
    reader.search("query 0")
    assert reader._store.params == [None]


def test_a_document_deleted_in_between_is_left_out(reader):
    winners = expected("query 0", 4, by_document=True)
    reader._store.vanishing = point_id("", *winners[1])
    assert pairs(reader.search("query 0", 4, by_document=True)) == [winners[0], *winners[2:]]


def test_an_event_loop_goes_on_while_many_searches_run(reader):
    with reader._following.searcher() as searcher:
        encoder = searcher.encoder
    encoder.seconds = 0.2

    async def serve() -> tuple[list, list[float]]:
        ticks, over = [], asyncio.Event()

        async def tick() -> None:
            while not over.is_set():
                ticks.append(time.perf_counter())
                await asyncio.sleep(0.01)

        ticker = asyncio.create_task(tick())
        found = await asyncio.gather(*(reader.search_async(query, 5) for query in QUERIES[:4]))
        found += await reader.search_many_async(QUERIES[4:8], 5)
        over.set()
        await ticker
        return found, ticks

    found, ticks = asyncio.run(serve())
    assert [pairs(one) for one in found] == [expected(query, 5) for query in QUERIES[:8]]
    assert encoder.most > 1  # they ran beside each other
    assert np.median(np.diff(ticks)) < 0.1  # half of a search: no search stopped the loop
    assert len(ticks) > 10


def test_async_takes_what_sync_takes_and_raises_what_it_raises(reader):
    async def both(**keywords) -> tuple[list, list]:
        return reader.search("query 2", **keywords), await reader.search_async("query 2", **keywords)

    for keywords in ({}, {"limit": 3}, {"where": ["n>=6"]}, {"limit": 20, "by_document": True}):
        sync, awaited = asyncio.run(both(**keywords))
        assert sync == awaited

    def away(*_):
        raise StoreUnavailable("no answer")

    reader._store.query_batch_points = away
    with pytest.raises(StoreUnavailable):
        asyncio.run(reader.search_async("query 2"))


def test_many_threads_search_at_once(reader):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda query: reader.search(query, 5, by_document=True), QUERIES))
    assert [pairs(one) for one in found] == [expected(query, 5, by_document=True) for query in QUERIES]
