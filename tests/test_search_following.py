"""A reader through swaps of its alias: no search fails, and none is answered by two versions."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from stores import alias

from pipeline.config import EncoderConfig, StoreConfig
from pipeline.encoders import Encoder, load_plain_encoder
from pipeline.errors import CollectionMismatch, EncoderError, StoreError, StoreUnavailable
from pipeline.schemas import point_id
from pipeline.search import Reader, Searcher, following
from pipeline.search.following import Following
from pipeline.stores import Points, Store, collection, open_store, profile_named
from pipeline.versions import Contract

TEXTS = [f"{word} number {n}" for n, word in enumerate(["river", "stone", "window", "engine", "paper"] * 4)]


@pytest.fixture(scope="module")
def encoders(tiny_model, other_model, encoder_cache) -> Iterator[list[Encoder]]:
    """Two of one dimension and of two spaces."""
    configs = [EncoderConfig(model=str(one), cache=str(encoder_cache)) for one in (tiny_model, other_model)]
    opened = [load_plain_encoder(config) for config in configs]
    yield opened
    for one in opened:
        one.close()


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(following, "EVERY_S", 0.05)


def contract_of(encoder: Encoder, model: str = "") -> Contract:
    spec = encoder.spec
    return Contract(
        spec.version, model or spec.source, "fp32", 64, "", "", "c", "", spec.dims, "cosine", "plain"
    )


def fill(store: Store, physical: str, encoder: Encoder) -> None:
    vectors = encoder.encode([encoder.tokenizer.encode(text) for text in TEXTS])
    ids, payloads = [], []
    for n, text in enumerate(TEXTS):
        ours = {"document_id": f"d{n}", "namespace": "", "chunk_index": 0, "chunk_count": 1, "start": 0}
        ours |= {"end": len(text), "sequence": 0, "encoder_version": encoder.spec.version}
        ids.append(point_id("", f"d{n}", 0))
        payloads.append(profile_named("plain").write(ids[-1], text, {}, ours))
    store.upsert(physical, Points(ids, {"": np.asarray(vectors)}, payloads))


def build(store: Store, encoder: Encoder, name: str = "docs@next", model: str = "") -> str:
    """A collection with the same chunks by this encoder, behind the alias `name`."""
    config = StoreConfig(url="memory:", collection=name)
    physical = collection.create(
        store, name, config, encoder.spec.dims, contract_of(encoder, model).metadata()
    )
    fill(store, physical, encoder)
    return physical


def swap(store: Store, physical: str) -> None:
    store.update_collection_aliases([alias("docs", physical)])


@contextmanager
def serving(kind: str, folder: Path, request, cache: Path) -> Iterator[tuple[Store, Callable[[], Reader]]]:
    """A store, and what opens a reader of `docs` in it: of a server by a connection of its own."""
    how = EncoderConfig(cache=str(cache))
    server = request.getfixturevalue("qdrant") if kind == "grpc" else None
    config = StoreConfig(
        url=server.grpc_url if server else f"edge:{folder}/store", collection="docs", retries=0
    )
    with closing(open_store(config)) as store:
        for left in store.get_collections().collections:
            store.delete_collection(left.name)

        def reader() -> Reader:
            if server:
                return Reader.open(config, how)
            physical = collection.resolve(store, "docs")
            assert physical
            followed = Following(store, config, how, Searcher.open(store, physical, config, how))
            followed.start()
            return Reader(store, followed)

        yield store, reader


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["edge", "grpc"])
def test_searches_go_on_through_swaps_and_retirements(kind, tmp_path, request, encoders, encoder_cache):
    wrong: list[object] = []
    done = {one.spec.version: 0 for one in encoders}
    ended = threading.Event()

    def searching(reader: Reader, by_document: bool) -> None:
        n = 0
        while not ended.is_set():
            n = (n + 1) % len(TEXTS)
            try:
                found = reader.search(TEXTS[n], 5, by_document=by_document)
            except Exception as error:  # noqa: BLE001 - any of them is what this test is about
                wrong.append(error)
                return
            made_by = {one.encoder_version for one in found}
            # A query of one version asked of vectors of the other would not find its own text at a cosine of 1.
            if len(made_by) != 1 or found[0].text != TEXTS[n] or abs(found[0].score - 1) > 1e-4:
                wrong.append(found)
            done[made_by.pop()] += 1

    with serving(kind, tmp_path, request, encoder_cache) as (store, opened):
        swap(store, build(store, encoders[0]))
        with opened() as reader:
            threads = [threading.Thread(target=searching, args=(reader, n % 2 == 1)) for n in range(4)]
            for thread in threads:
                thread.start()
            for number in range(1, 6):
                before = collection.resolve(store, "docs")
                swap(store, build(store, encoders[number % 2]))
                if number % 2:  # retired at once: searches find it gone before the reader has looked
                    store.delete_collection(before)
                version = encoders[number % 2].spec.version
                since = done[version]
                until(lambda version=version, since=since: wrong or done[version] > since + 20)
            ended.set()
            for thread in threads:
                thread.join()
            assert not wrong
            assert reader.contract.encoder_version == encoders[1].spec.version
            assert len(reader._following._users) == 1  # the others are closed


def test_an_encoder_in_use_is_closed_by_its_last_search(tmp_path, request, encoders, encoder_cache):
    with serving("edge", tmp_path, request, encoder_cache) as (store, opened):
        swap(store, build(store, encoders[0]))
        with opened() as reader:
            with reader._following.searcher() as before:
                swap(store, build(store, encoders[1]))
                until(lambda: reader.contract.encoder_version == encoders[1].spec.version)
                assert before.find(before.embed(["river"]))[0][0].encoder_version == encoders[0].spec.version
            with pytest.raises(EncoderError, match="closed"):
                before.embed(["river"])
            assert reader.search("river")[0].encoder_version == encoders[1].spec.version


def test_a_version_that_cannot_be_loaded_is_not_moved_to(tmp_path, request, encoders, encoder_cache, caplog):
    with serving("edge", tmp_path, request, encoder_cache) as (store, opened):
        first = build(store, encoders[0])
        swap(store, first)
        with opened() as reader, caplog.at_level(logging.ERROR, "pipeline.search"):
            swap(store, build(store, encoders[1], model=str(tmp_path / "gone")))
            until(lambda: "reader_not_moved" in caplog.text)
            assert reader.search("river")[0].encoder_version == encoders[0].spec.version
            swap(store, build(store, encoders[1]))
            until(lambda: reader.contract.encoder_version == encoders[1].spec.version)
            swap(store, build(store, encoders[0], model=str(tmp_path / "gone")))
            for left in store.get_collections().collections:
                if left.name != collection.resolve(store, "docs"):
                    store.delete_collection(left.name)
            with pytest.raises(EncoderError, match="cannot be loaded"):
                reader.search("river")  # there is nothing left that could answer
    table = (Path(__file__).parents[1] / "deploy/README.md").read_text()
    assert "`reader_not_moved`" in table
    assert "`reader_moved`" in table


def test_a_store_that_is_away_or_an_alias_that_is_gone_moves_nobody(
    tmp_path, request, encoders, encoder_cache, caplog, monkeypatch
):
    with serving("edge", tmp_path, request, encoder_cache) as (store, opened):
        swap(store, build(store, encoders[0]))
        with opened() as reader:
            asked = []

            def away():
                asked.append(1)
                raise StoreUnavailable("no answer")

            with monkeypatch.context() as patch:
                patch.setattr(store, "get_aliases", away)
                until(lambda: len(asked) > 3)
            assert "reader_not_moved" not in caplog.text
            store.delete_collection(collection.resolve(store, "docs"))
            with pytest.raises(StoreError, match="no collection"):
                reader.search("river")


def test_where_an_encoder_lies_is_said_of_the_first_version_alone(
    tmp_path, encoders, other_model, encoder_cache
):
    config = StoreConfig(url=f"edge:{tmp_path}/store", collection="docs")
    how = EncoderConfig(cache=str(encoder_cache), model=encoders[0].spec.source)
    with closing(open_store(config)) as store:
        moved = build(store, encoders[0], model=str(tmp_path / "was-here"))
        swap(store, moved)
        first = Searcher.open(store, moved, config, how)
        followed = Following(store, config, how, first)
        swap(store, build(store, encoders[1]))
        assert followed.look().contract.model == str(other_model)
        swap(store, moved)
        assert followed.look().contract.encoder_version == first.contract.encoder_version
        other = {"model": str(other_model), "cache": str(tmp_path / "cache")}
        with pytest.raises(CollectionMismatch, match="cannot be compared"):
            Searcher.open(store, moved, config, how.model_copy(update=other))
        assert not list(tmp_path.glob("cache/**/*.onnx"))  # it is refused before it is exported
        followed.close()


def test_a_reader_that_nobody_has_any_more_looks_no_further(tmp_path, request, encoders, encoder_cache):
    with serving("edge", tmp_path, request, encoder_cache) as (store, opened):
        swap(store, build(store, encoders[0]))
        reader = opened()
        thread = reader._following._thread
        assert thread.is_alive()
        del reader
        until(lambda: not thread.is_alive())
