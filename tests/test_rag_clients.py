"""The real clients of three RAG frameworks find in our collections what `headwater search` finds, in the same order."""

from __future__ import annotations

import asyncio
import os
import re

os.environ |= {
    "HAYSTACK_TELEMETRY_ENABLED": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "DO_NOT_TRACK": "1",
}

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import models as test_models
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import runs
from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore as LangChainStore
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import MetadataMode
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaIndexStore
from qdrant_client import QdrantClient, models

from pipeline.config import EncoderConfig, StoreConfig
from pipeline.schemas import point_id
from pipeline.search import Reader, Result
from pipeline.stores import Points, collection, open_store, profile_named

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "deploy" / "sample" / "manual-pages.parquet"
README = ROOT / "README.md"
QUERIES = 20
TOP = 5


@dataclass(frozen=True)
class Found:
    """A chunk as a client shows it."""

    point: str
    text: str
    score: float
    metadata: dict[str, Any]


FILTER = ("section>=3", "license!=GPL-2.0-or-later")


def by_headwater(results: list[Result]) -> list[Found]:
    return [
        Found(point_id("", one.document_id, one.chunk_index), one.text, one.score, one.metadata)
        for one in results
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The sample's shorter pages."""
    pages = pq.read_table(SAMPLE)
    shortest = pc.sort_indices(pc.utf8_length(pages["text"]))[:24]
    file = tmp_path_factory.mktemp("source") / "pages.parquet"
    pq.write_table(pages.take(shortest), file)
    return file


@pytest.fixture(scope="module")
def queries(source) -> list[str]:
    return pq.read_table(source)["title"].to_pylist()[:QUERIES]


class ByTorch(Embeddings):
    """sentence-transformers, as the frameworks use it: nothing of ours is in these vectors."""

    def __init__(self, queries: list[str]) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(test_models.package_folder()), device="cpu")
        self.known = dict(zip(queries, self.embed_documents(queries), strict=True))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return np.asarray(self.model.encode(texts, show_progress_bar=False)).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.known.get(text) or self.embed_documents([text])[0]


@pytest.fixture(scope="module")
def embedding(queries) -> ByTorch:
    return ByTorch(queries)


@dataclass(frozen=True)
class Place:
    """A filled collection: in a folder, or on a server."""

    store: StoreConfig

    @property
    def at(self) -> dict[str, str]:
        """How qdrant-client, and what is built on it, opens the place."""
        kind, _, folder = self.store.url.partition(":")
        return {"path": folder} if kind == "local" else {"url": self.store.url}

    @property
    def collection(self) -> str:
        return self.store.collection

    def client(self) -> QdrantClient:
        """As an application opens it."""
        return QdrantClient(**self.at)

    def ours(self, queries: list[str], encoder: EncoderConfig, *where: str) -> list[list[Found]]:
        """What our own reader finds for each query."""
        with Reader.open(self.store, encoder) as reader:
            return [*map(by_headwater, reader.search_many(queries, TOP, where))]


@pytest.fixture(scope="module")
def encoder(encoder_cache) -> EncoderConfig:
    return EncoderConfig(cache=str(encoder_cache), provider="cpu")


@pytest.fixture(scope="module")
def filled(source, encoder_cache, tmp_path_factory) -> Callable[[str], Place]:
    """Each profile's folder, filled when first asked for."""
    made: dict[str, Place] = {}

    def fill(profile: str) -> Place:
        if profile not in made:
            to = runs.settings(
                test_models.PACKAGE, encoder_cache, f"local:{tmp_path_factory.mktemp(profile)}",
                store__profile=profile, store__payload_indexes="section=integer",
            )  # fmt: skip
            assert runs.run(source, to).exit_code == 0
            made[profile] = Place(to.store)
        return made[profile]

    return fill


@pytest.fixture(params=["local", "server"])
def place(request, filled) -> Callable[[str], Place]:
    """Where a profile's points are: the folder that `ingest` filled, or a server with a copy of it."""

    def of(profile: str) -> Place:
        if request.param == "local":
            return filled(profile)
        return copy(filled(profile).store, request.getfixturevalue("qdrant").rest_url)

    return of


def copy(store: StoreConfig, url: str) -> Place:
    """The collection on a server too, under a name of its own."""
    alias = f"rag-{store.profile}"
    to = store.model_copy(update={"url": url, "prefer_grpc": False, "collection": alias})
    here, there = open_store(store), open_store(to)
    if not there.collection_exists(alias):
        records, _ = here.scroll(store.collection, limit=10_000, with_vectors=True)
        vectors = np.array([record.vector for record in records], np.float32)
        collection.create(
            there, alias, store, vectors.shape[1], collection.read_metadata(here, store.collection)
        )
        there.upsert(alias, Points([r.id for r in records], {"": vectors}, [r.payload for r in records]))
    here.close()
    there.close()
    return Place(to)


def assert_same(ours: list[list[Found]], theirs: list[list[Found]]) -> None:
    """The same chunks in the same order, with the same text, metadata and score."""
    assert len(ours) == len(theirs) == QUERIES
    assert all(len(found) == TOP for found in ours)
    for mine, other in zip(ours, theirs, strict=True):
        assert [one.point for one in other] == [one.point for one in mine]
        assert [one.text for one in other] == [one.text for one in mine]
        assert [one.metadata for one in other] == [one.metadata for one in mine]
        assert [one.score for one in other] == pytest.approx([one.score for one in mine], abs=1e-4)


# --- LangChain


def by_langchain(store: LangChainStore, query: str, where: models.Filter | None = None) -> list[Found]:
    found = store.similarity_search_with_score(query, k=TOP, filter=where)
    theirs = ("_id", "_collection_name")  # what the client adds to metadata
    return [
        Found(
            document.metadata["_id"],
            document.page_content,
            score,
            {key: value for key, value in document.metadata.items() if key not in theirs},
        )
        for document, score in found
    ]


LANGCHAIN_FILTER = models.Filter(
    must=[models.FieldCondition(key="metadata.section", range=models.Range(gte=3))],
    must_not=[
        models.FieldCondition(key="metadata.license", match=models.MatchValue(value="GPL-2.0-or-later"))
    ],
)


@pytest.mark.parametrize(("profile", "keys"), [("langchain", {}), ("plain", {"content_payload_key": "text"})])
def test_langchain_finds_what_we_find(profile, keys, place, queries, encoder, embedding):
    at = place(profile)
    ours, filtered = at.ours(queries, encoder), at.ours(queries, encoder, *FILTER)
    client = at.client()
    store = LangChainStore(client=client, collection_name=at.collection, embedding=embedding, **keys)
    assert_same(ours, [by_langchain(store, query) for query in queries])
    assert_same(filtered, [by_langchain(store, query, LANGCHAIN_FILTER) for query in queries])
    client.close()


# --- LlamaIndex


def by_llamaindex(store: LlamaIndexStore, vector: list[float], where: MetadataFilters | None) -> list[Found]:
    answer = store.query(VectorStoreQuery(query_embedding=vector, similarity_top_k=TOP, filters=where))
    assert answer.ids == [node.node_id for node in answer.nodes]
    return [
        Found(node.node_id, node.get_content(), score, node.metadata)
        for node, score in zip(answer.nodes, answer.similarities, strict=True)
    ]


def llamaindex_filter(prefix: str = "") -> MetadataFilters:
    return MetadataFilters(
        filters=[
            MetadataFilter(key=f"{prefix}section", value=3, operator=FilterOperator.GTE),
            MetadataFilter(key=f"{prefix}license", value="GPL-2.0-or-later", operator=FilterOperator.NE),
        ]
    )


def test_llamaindex_finds_what_we_find(place, queries, encoder, embedding):
    at = place("llamaindex")
    ours, filtered = at.ours(queries, encoder), at.ours(queries, encoder, *FILTER)
    client = at.client()
    store = LlamaIndexStore(at.collection, client=client)
    vectors = [embedding.embed_query(query) for query in queries]
    assert_same(ours, [by_llamaindex(store, vector, None) for vector in vectors])
    assert_same(filtered, [by_llamaindex(store, vector, llamaindex_filter()) for vector in vectors])
    client.close()


def test_llamaindex_knows_whose_part_a_node_is_and_shows_a_language_model_nothing_of_ours(filled):
    with_nodes = filled("llamaindex").client()
    store = LlamaIndexStore("docs", client=with_nodes)
    records, _ = with_nodes.scroll("docs", limit=20)
    for record in records:
        (node,) = store.get_nodes([record.id])
        ours = record.payload["headwater"]
        assert node.ref_doc_id == ours["document_id"]
        assert (node.start_char_idx, node.end_char_idx) == (ours["start"], ours["end"])
        assert "headwater" not in node.get_content(MetadataMode.LLM)
        assert "section: " in node.get_content(MetadataMode.LLM)
    with_nodes.close()


def test_llamaindex_reads_the_plain_profile_by_its_text_key(place, queries, encoder, embedding):
    at = place("plain")
    ours, filtered = at.ours(queries, encoder), at.ours(queries, encoder, *FILTER)
    client = at.client()
    store = LlamaIndexStore(at.collection, client=client, text_key="text")
    vectors = [embedding.embed_query(query) for query in queries]
    for mine, where in [(ours, None), (filtered, llamaindex_filter("metadata."))]:
        theirs = [by_llamaindex(store, vector, where) for vector in vectors]
        nested = [[replace(one, metadata=one.metadata["metadata"]) for one in found] for found in theirs]
        assert_same(mine, nested)
    client.close()


# --- Haystack


def by_haystack(
    retriever: QdrantEmbeddingRetriever, vector: list[float], where: dict[str, Any] | None = None
) -> list[Found]:
    documents = retriever.run(query_embedding=vector, filters=where)["documents"]
    return [
        Found(one.id, one.content, one.score, {k: v for k, v in one.meta.items() if k != "headwater"})
        for one in documents
    ]


HAYSTACK_FILTER = {
    "operator": "AND",
    "conditions": [
        {"field": "meta.section", "operator": ">=", "value": 3},
        {"field": "meta.license", "operator": "!=", "value": "GPL-2.0-or-later"},
    ],
}


def haystack(at: Place, **more: Any) -> QdrantDocumentStore:
    return QdrantDocumentStore(**at.at, index=at.collection, **{"embedding_dim": 384} | more)


def test_haystack_finds_what_we_find(place, queries, encoder, embedding):
    at = place("haystack")
    ours, filtered = at.ours(queries, encoder), at.ours(queries, encoder, *FILTER)
    store = haystack(at)
    retriever = QdrantEmbeddingRetriever(document_store=store, top_k=TOP)
    vectors = [embedding.embed_query(query) for query in queries]
    assert_same(ours, [by_haystack(retriever, vector) for vector in vectors])
    assert_same(filtered, [by_haystack(retriever, vector, HAYSTACK_FILTER) for vector in vectors])
    store.close()


def test_haystack_is_told_whose_part_a_document_is(filled, source):
    page = pq.read_table(source)["id"][0].as_py()
    store = haystack(filled("haystack"))
    wanted = {"field": "headwater.document_id", "operator": "==", "value": page}
    found = store.filter_documents(wanted)
    assert {one.meta["headwater"]["document_id"] for one in found} == {page}
    assert len(found) == found[0].meta["headwater"]["chunk_count"]
    store.close()


# --- what clients do to a collection, and other vectors than the unnamed one


def small(folder: Path, profile: str, **config: Any) -> Place:
    """Three documents of one chunk each, by hand."""
    store = StoreConfig(url=f"local:{folder}", collection="docs", profile=profile, **config)
    opened = open_store(store)
    collection.create(opened, "docs", store, 4, {})
    ids = [point_id("", name, 0) for name in "abc"]
    payloads = [
        profile_named(profile).write(
            id, f"text {name}", {"n": n}, {"document_id": name, "chunk_index": 0, "start": 0, "end": 6}
        )
        for n, (id, name) in enumerate(zip(ids, "abc", strict=True))
    ]
    opened.upsert("docs", Points(ids, {store.vector_name: np.eye(3, 4, dtype=np.float32)}, payloads))
    opened.close()
    return Place(store)


def remaining(at: Place) -> set[str]:
    client = at.client()
    records, _ = client.scroll(at.collection)
    client.close()
    return {record.payload["headwater"]["document_id"] for record in records}


def test_clients_delete_by_document(tmp_path):
    at = small(tmp_path / "llamaindex", "llamaindex")
    client = at.client()
    LlamaIndexStore("docs", client=client).delete("b")
    client.close()
    assert remaining(at) == {"a", "c"}

    at = small(tmp_path / "haystack", "haystack")
    store = haystack(at, embedding_dim=4)
    assert store.delete_by_filter({"field": "headwater.document_id", "operator": "==", "value": "b"}) == 1
    store.close()
    assert remaining(at) == {"a", "c"}

    at = small(tmp_path / "langchain", "langchain")
    client = at.client()
    embedding = Fixed()
    LangChainStore(client=client, collection_name="docs", embedding=embedding).delete([point_id("", "b", 0)])
    client.close()
    assert remaining(at) == {"a", "c"}


class Fixed(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [0.0, 1.0, 0.1, 0.0]


def test_clients_are_told_the_name_of_a_named_vector(tmp_path):
    query = Fixed().embed_query("")
    client = small(tmp_path / "langchain", "langchain", vector_name="dense").client()
    chained = LangChainStore(
        client=client, collection_name="docs", embedding=Fixed(), vector_name="dense"
    ).similarity_search("?", k=2)
    assert [document.page_content for document in chained] == ["text b", "text c"]
    client.close()

    client = small(tmp_path / "llamaindex", "llamaindex", vector_name="dense").client()
    store = LlamaIndexStore("docs", client=client, dense_vector_name="dense")
    answer = store.query(VectorStoreQuery(query_embedding=query, similarity_top_k=2))
    assert [node.get_content() for node in answer.nodes] == ["text b", "text c"]
    client.close()

    at = small(tmp_path / "haystack", "haystack", vector_name="text-dense", sparse_vector="text-sparse")
    documents = haystack(at, embedding_dim=4, use_sparse_embeddings=True)
    found = QdrantEmbeddingRetriever(document_store=documents, top_k=2).run(query_embedding=query)[
        "documents"
    ]
    assert [document.content for document in found] == ["text b", "text c"]
    documents.close()


# --- the README's own lines


class ForLlamaIndex(BaseEmbedding):
    by: Any

    def _get_query_embedding(self, query: str) -> list[float]:
        return self.by.embed_query(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self.by.embed_query(text)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self.by.embed_query(query)


def run_block(mark: str, where: str, name: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run the README's block of Python that holds `mark` on another store and collection; returns its variables."""
    (block,) = [code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if mark in code]
    assert 'url="http://qdrant:6333"' in block
    exec(block.replace('url="http://qdrant:6333"', where).replace('"docs"', repr(name)), names)
    return names


@pytest.mark.parametrize("profile", ["langchain", "llamaindex", "haystack"])
def test_the_readmes_lines_for_each_client(profile, place, encoder, embedding):
    at = place(profile)
    (ours,) = at.ours(["a question"], encoder, "section>=2")
    vector = embedding.embed_query("a question")
    object_ = ForLlamaIndex(by=embedding) if profile == "llamaindex" else embedding
    ((key, where),) = at.at.items()
    names = {"embedding": object_, "vector": vector}
    run_block(f'# store.profile = "{profile}"', f"{key}={where!r}", at.collection, names)
    if profile == "llamaindex":
        assert [one.get_content() for one in names["nodes"]] == [one.text for one in ours]
    else:
        documents = names["documents"]
        texts = [getattr(one, "page_content", None) or one.content for one in documents]
        assert texts == [one.text for one in ours]
    names["client" if profile != "haystack" else "store"].close()


def test_the_readmes_lines_for_our_own_reader(filled, encoder, monkeypatch):
    at = filled("haystack")
    monkeypatch.setattr("pipeline.search.reader.EncoderConfig", lambda: encoder)  # its cache
    (ours,) = at.ours(["a question"], encoder, "section>=2")
    names = run_block("async def context_async", f"url={at.store.url!r}", at.collection, {})
    assert names["context"]("a question") == "\n\n".join(one.text for one in ours)

    async def serve() -> list[str]:
        return await asyncio.gather(*(names["context_async"]("a question") for _ in range(4)))

    assert len(set(asyncio.run(serve()))) == 1
    names["reader"].close()
