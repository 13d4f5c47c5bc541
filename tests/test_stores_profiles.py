"""Payload profiles: the same chunk and metadata whatever the layout, in filters and indexes too."""

from __future__ import annotations

import json

import documents
import numpy as np
import points as stored
import pytest
import runs
from hypothesis import given
from hypothesis import strategies as st
from stores import ID, vector

from pipeline.config import StoreConfig
from pipeline.errors import CollectionMismatch, UsageError
from pipeline.search import Reader
from pipeline.stores import Points, collection, open_store, parse_filter, profile_named
from pipeline.stores.profiles import RESERVED

NAMES = ["plain", "langchain", "llamaindex", "haystack"]
OURS = {"document_id": "d1", "namespace": "", "chunk_index": 2, "start": 3, "end": 9}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
metadatas = st.dictionaries(
    st.text() | st.sampled_from(["text", "id", "content", "metadata", "document_id", "relationships"]),
    json_values,
    max_size=5,
).filter(lambda found: not RESERVED & found.keys())


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(), metadata=metadatas)
def test_a_payload_gives_back_the_text_and_the_metadata(name, text, metadata):
    profile = profile_named(name)
    payload = json.loads(json.dumps(profile.write(ID[1], text, metadata, OURS)))
    assert profile.read(payload) == (text, metadata)
    assert payload["headwater"] == OURS


@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_stored_once_and_metadata_where_its_path_says(name):
    profile = profile_named(name)
    payload = profile.write(ID[1], "a text like no other", {"year": 2001, "deep": {"er": 1}}, OURS)
    assert json.dumps(payload).count("a text like no other") == 1
    for path, value in {"year": 2001, "deep.er": 1}.items():
        found = payload
        for key in profile.path(path).split("."):
            found = found[key]
        assert found == value


@pytest.mark.parametrize("key", ["doc_id", "_node_content", "_node_type", "headwater"])
def test_metadata_that_would_lie_on_a_reserved_name_is_refused(key):
    with pytest.raises(UsageError, match=f"'{key}'.*source.metadata"):
        profile_named("llamaindex").write(ID[1], "t", {key: 1}, OURS)
    for nested in ("plain", "langchain", "haystack"):
        profile = profile_named(nested)
        assert profile.read(profile.write(ID[1], "t", {key: 1}, OURS)) == ("t", {key: 1})


def test_a_profile_that_we_do_not_know_is_named():
    with pytest.raises(CollectionMismatch, match=r"'mine'.*haystack, langchain, llamaindex, plain"):
        profile_named("mine")


@pytest.mark.parametrize("kind", ["edge", "memory"])
@pytest.mark.parametrize("name", NAMES)
def test_conditions_and_indexes_are_on_metadata_wherever_it_lies(name, kind, tmp_path):
    config = StoreConfig(
        url=f"{kind}:{tmp_path}", profile=name, payload_indexes={"n": "integer", "lang": "keyword"}
    )
    profile, store = profile_named(name), open_store(config)
    collection.create(store, "docs", config, 4, {})
    schema = store.get_collection("docs").payload_schema
    assert {profile.path("n"), profile.path("lang"), *profile.indexes, *collection.OUR_INDEXES} == set(schema)
    metadata = [{"n": n, "lang": "en" if n % 3 else "de", "deep": {"x": n}} for n in range(20)]
    payloads = [
        profile.write(ID[n], "t", metadata[n], OURS | {"document_id": f"d{n % 4}"}) for n in range(20)
    ]
    rows = np.array([vector(n) for n in range(20)], np.float32)
    store.upsert("docs", Points(ID[:20], {"": rows}, payloads))
    for typed, expected in {
        ("n>=15",): lambda n: n >= 15,
        ("lang=de", "n<9"): lambda n: n % 3 == 0 and n < 9,
        ("n!=3|5",): lambda n: n not in (3, 5),
        ("deep.x=4",): lambda n: n == 4,
        ("document_id=d1",): lambda n: n % 4 == 1,
    }.items():
        found, _ = store.scroll("docs", parse_filter(typed, profile), limit=50)
        assert {ID.index(record.id) for record in found} == {n for n in range(20) if expected(n)}
    store.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return documents.write(
        tmp_path_factory.mktemp("source") / "docs.parquet", documents.rows(12, most_words=60)
    )


@pytest.fixture
def settings(tiny_model, encoder_cache, tmp_path):
    def make(name, profile, **more):
        return runs.settings(
            tiny_model, encoder_cache, f"edge:{tmp_path}/{name}", store__profile=profile,
            store__payload_indexes="year=integer", **more,
        )  # fmt: skip

    return make


def test_every_profile_has_the_same_points_and_results(source, settings):
    seen = {}
    for name in NAMES:
        to = settings(name, name)
        assert runs.run(source, to).exit_code == 0
        points = stored.contents_of(to.store.url, "docs")
        profile = profile_named(name)
        chunks = {id: (*profile.read(payload), payload["headwater"]) for id, (payload, _) in points.items()}
        with Reader.open(to.store, to.encoder) as reader:
            assert reader.contract.profile == name
            found = [*reader.search("river", 5), *reader.search("stone", 5, ["year>=2010"], by_document=True)]
        assert found[5:]
        seen[name] = (chunks, found)
    assert all(one == seen["plain"] for one in seen.values())


def test_a_reader_goes_by_the_collection_and_a_run_by_its_settings(source, settings):
    runs.run(source, settings("one", "haystack"))
    other = settings("one", "langchain")
    before = stored.contents_of(other.store.url, "docs")
    with pytest.raises(CollectionMismatch, match=r"'langchain'.*'haystack'.*Set store\.profile = 'haystack'"):
        runs.run(source, other)
    assert stored.contents_of(other.store.url, "docs") == before
    with Reader.open(other.store, other.encoder) as reader:
        assert reader.search("river", 1)[0].text


def test_a_run_with_a_column_on_a_reserved_name_ends_before_it_writes(settings, tmp_path):
    rows = [row | {"doc_id": n} for n, row in enumerate(documents.rows(5))]
    source, to = documents.write(tmp_path / "docs.parquet", rows), settings("one", "llamaindex")
    with pytest.raises(UsageError, match="'doc_id'"):
        runs.run(source, to)
    assert stored.contents_of(to.store.url, "docs") == {}
    without = settings("one", "llamaindex", source__metadata="year")
    assert runs.run(source, without).exit_code == 0
