"""Codes from the command line's settings to search: what is stored, found, and refused before anything is written."""

from __future__ import annotations

import asyncio
import shutil

import documents
import numpy as np
import points
import pytest
import runs

from pipeline.codes import load_codes, make_binarizer, query_rows, save_codes, to_rows
from pipeline.encoders import describe, load_encoder, load_plain_encoder
from pipeline.encoders.coded import as_coded_run, coded_rows
from pipeline.errors import BrokenInvariant, CollectionMismatch, EncoderError
from pipeline.lane.embedding import embed_chunks
from pipeline.optimize import optimize
from pipeline.plan import plan
from pipeline.search import Reader
from pipeline.sources import open_source
from pipeline.stores import open_store
from pipeline.versions import Contract

BITS, DIMS = 2, 48
QUESTIONS = ["river and stone", "winter market music", "kernel thread memory signal", "letter"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rows = documents.rows(40, most_words=160)
    return documents.write(tmp_path_factory.mktemp("source") / "docs.parquet", rows, row_group=15)


@pytest.fixture(scope="module")
def codes(tmp_path_factory, tiny_model, encoder_cache):
    """A codes folder for the tiny model."""
    encoder = load_plain_encoder(runs.settings(tiny_model, encoder_cache, "memory:").encoder)
    sample = encoder.encode_queries([row["text"][:200] for row in documents.rows(200, seed=3)])
    folder = tmp_path_factory.mktemp("codes") / "codes"
    save_codes(make_binarizer("rotation", sample, DIMS, BITS, encoder_version=encoder.spec.version), folder)
    encoder.close()
    return folder


@pytest.fixture
def to(tiny_model, encoder_cache, tmp_path, codes):
    def settings(url: str = f"edge:{tmp_path}/index", **more):
        state = {"run__state": str(tmp_path / "state")}
        return runs.settings(tiny_model, encoder_cache, url, encoder__codes=str(codes), **state, **more)

    return settings


def found(settings, **how):
    with Reader.open(settings.store, settings.encoder.model_copy(update={"codes": ""})) as reader:
        results = reader.search_many(QUESTIONS, 5, **how)
        return [[(one.document_id, one.chunk_index, one.score) for one in hits] for hits in results]


def test_the_graphs_codes_are_those_of_numpy_and_only_they_leave_unless_vectors_are_kept(to, codes):
    config = to().encoder
    binarizer = load_codes(codes)
    plain, both, alone = (
        load_plain_encoder(config),
        load_encoder(config),
        load_encoder(config, keep_vectors=False),
    )
    inputs = [plain.tokenizer.encode(question) for question in QUESTIONS]
    vectors = plain.encode(inputs)
    expected = binarizer.encode(vectors)
    rows = both.encode(inputs)
    np.testing.assert_allclose(rows[:, BITS * DIMS :], vectors, atol=1e-6)
    np.testing.assert_allclose(rows[:, : BITS * DIMS], to_rows(expected, BITS), rtol=1e-4)
    assert (alone.encode(inputs) == rows[:, : BITS * DIMS]).all()
    assert (plain.width, alone.width, both.width) == (32, 96, 128)
    assert alone.spec.version == both.spec.version != plain.spec.version == both.spec.plain.version
    with pytest.raises(BrokenInvariant):
        both.encode_queries(QUESTIONS)


@pytest.mark.parametrize(("long", "max_tokens", "chunk"), [("late-chunking", 64, 40), ("pcw", 300, 250)])
def test_codes_of_vectors_that_are_made_of_several_rows(
    long, max_tokens, chunk, tiny_model, encoder_cache, source, tmp_path
):
    said = {"encoder__long": long, "encoder__max_tokens": max_tokens, "chunking__max_tokens": chunk}
    said["run__state"] = str(tmp_path / "state")
    url = f"edge:{tmp_path}/index"
    settings = runs.settings(tiny_model, encoder_cache, url, **said)
    given = open_source(str(source), settings.source, tmp_path)
    chunks = embed_chunks(given, settings, load_encoder(settings.encoder), lambda _: None)
    version = describe(settings.encoder).version
    binarizer = make_binarizer("rotation", chunks.vectors, DIMS, BITS, encoder_version=version)
    save_codes(binarizer, tmp_path / "codes")
    coded = runs.settings(tiny_model, encoder_cache, url, encoder__codes=str(tmp_path / "codes"), **said)
    expected = to_rows(binarizer.encode(chunks.vectors), BITS)

    both, alone = (
        embed_chunks(given, coded, load_encoder(coded.encoder, keep), lambda _: None)
        for keep in (True, False)
    )

    np.testing.assert_array_equal(both.vectors[:, BITS * DIMS :], chunks.vectors)
    for rows in (both.vectors[:, : BITS * DIMS], alone.vectors):
        np.testing.assert_array_equal(rows > 0, expected > 0)
        np.testing.assert_allclose(rows, expected, rtol=1e-6)
    assert runs.run(source, coded).counts.chunks == len(expected)
    held = points.contents_of(url, "docs")
    stored = {
        (p["headwater"]["document_id"], p["headwater"]["chunk_index"]): v["codes"] for p, v in held.values()
    }
    for number, owner in enumerate(chunks.owners):
        index = number - int(np.flatnonzero(chunks.owners == owner)[0])
        np.testing.assert_allclose(stored[chunks.documents[owner], index], expected[number], rtol=1e-3)
    assert [len(hits) for hits in found(coded)] == [5] * len(QUESTIONS)


def test_vectors_without_a_direction_have_no_code():
    sample = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    binarizer = make_binarizer("sign", sample, 8, 1)
    sample[1], sample[2, 3], sample[3, 0] = 0, np.nan, np.inf

    rows = coded_rows(binarizer, False, sample[:5])

    assert np.isfinite(rows).all(axis=1).tolist() == [True, False, False, False, True]


def test_a_vector_without_a_direction_has_no_code():
    class Output:
        def __init__(self, name):
            self.name = name

    class Session:
        def get_outputs(self):
            return [Output(name) for name in ("codes", "scales", "lengths", "vectors")]

        def run(self, wanted, feeds):
            lengths = np.array([3.0, 0.0, np.nan, np.inf], np.float32)
            return [np.full((4, 12), 7, np.uint8), np.ones((4, 1), np.float32), lengths][: len(wanted)]

    ids = np.ones((4, 2), np.int64)
    rows = as_coded_run(Session(), BITS, keep_vectors=False)(ids, ids)
    assert np.isfinite(rows).all(axis=1).tolist() == [True, False, False, False]


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_stored_and_found(keep, to, source, codes):
    settings = to(store__keep_vectors=keep)
    runs.run(source, settings)
    held = points.contents_of(settings.store.url, "docs")
    binarizer = load_codes(codes)
    plain = load_plain_encoder(settings.encoder)
    texts = {id: payload["text"] for id, (payload, _) in held.items()}
    expected = plain.encode([plain.tokenizer.encode(text) for text in texts.values()])
    rows = to_rows(binarizer.encode(expected), BITS)
    queries = plain.encode_queries(QUESTIONS)
    for number, id in enumerate(texts):
        vector = held[id][1]
        assert set(vector) == ({"codes", "full"} if keep else {"codes"})
        np.testing.assert_allclose(vector["codes"], rows[number], rtol=1e-3)
        if keep:
            np.testing.assert_allclose(vector["full"], expected[number], atol=2e-3)  # float16
    ours = [
        (payload["headwater"]["document_id"], payload["headwater"]["chunk_index"])
        for payload, _ in held.values()
    ]
    scores = queries @ expected.T if keep else query_rows(binarizer, queries) @ rows.T
    for hits, row in zip(found(settings), scores, strict=True):
        best = np.argsort(-row)[:5]
        assert [one[:2] for one in hits] == [ours[n] for n in best]
        np.testing.assert_allclose([one[2] for one in hits], row[best], rtol=1e-2)
    assert runs.run(source, settings).counts.unchanged == 40


@pytest.fixture(scope="module")
def reference(source, tiny_model, encoder_cache, codes, tmp_path_factory):
    url = f"edge:{tmp_path_factory.mktemp('reference')}/index"
    settings = runs.settings(tiny_model, encoder_cache, url, encoder__codes=str(codes))
    runs.run(source, settings)
    return settings


HOW = [{}, {"where": ["year>=2005"]}, {"by_document": True}]


@pytest.mark.parametrize("store", ["grpc", "http", "local"])
def test_every_store_finds_the_same(store, to, source, reference, tmp_path, request):
    url, more = f"local:{tmp_path}/local", {}
    if store != "local":
        server = request.getfixturevalue("qdrant")
        url = server.grpc_url if store == "grpc" else server.rest_url
        more = {"store__prefer_grpc": store == "grpc"}
    settings = to(url, store__collection=f"codes-{store}", **more)
    runs.run(source, settings)
    for how in HOW:
        there, here = found(reference, **how), found(settings, **how)
        assert [[one[:2] for one in hits] for hits in there] == [[one[:2] for one in hits] for hits in here]
    opened = open_store(settings.store)
    kept = Contract.read(opened.get_collection(settings.store.collection).config.metadata, "docs").codes
    opened.close()
    assert (kept.bits, kept.dims, kept.vector_name, kept.keep_vectors) == (BITS, DIMS, "codes", True)


def test_coded_queries_and_an_event_loop(reference):
    plain = reference.encoder.model_copy(update={"codes": ""})

    async def asked(store):
        with Reader.open(store, plain) as reader:
            return await reader.search_async(QUESTIONS[0], 5)

    symmetric = reference.store.model_copy(update={"code_queries": True})
    # of 40 documents nearly all are candidates, and the vectors have the last word
    assert asyncio.run(asked(symmetric)) == asyncio.run(asked(reference.store))


def test_bad_codes_are_named_before_anything_is_written(to, codes, source, other_model, tmp_path):
    def refused(folder, **more):
        settings = to(**more)
        settings = settings.model_copy(
            update={"encoder": settings.encoder.model_copy(update={"codes": str(folder)})}
        )
        with pytest.raises(EncoderError) as error:
            runs.run(source, settings)
        assert not (tmp_path / "index").exists()
        return str(error.value)

    assert "no codes can be read" in refused(tmp_path / "nowhere")
    damaged = tmp_path / "damaged"
    shutil.copytree(codes, damaged)
    weights = damaged / "binarizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert "are not those that" in refused(damaged)
    assert "trained on vectors of encoder version" in refused(codes, encoder__max_tokens=32)
    narrow = tmp_path / "narrow"
    save_codes(
        make_binarizer("rotation", np.random.default_rng(0).normal(size=(300, 16)).astype("f4"), 16, 1),
        narrow,
    )
    assert "vectors of 16 dimensions" in refused(narrow)


def test_one_collection_holds_vectors_in_one_form(to, source, reference, codes, tmp_path):
    plain = reference.model_copy(update={"encoder": reference.encoder.model_copy(update={"codes": ""})})
    with pytest.raises(CollectionMismatch, match="vectors without codes here"):
        runs.run(source, plain)
    unkept = reference.model_copy(
        update={"store": reference.store.model_copy(update={"keep_vectors": False})}
    )
    with pytest.raises(CollectionMismatch, match="without their vectors"):
        runs.run(source, unkept)
    other = tmp_path / "other"
    version = describe(plain.encoder).version
    sample = np.random.default_rng(0).normal(size=(300, 32)).astype("f4")
    save_codes(make_binarizer("rotation", sample, DIMS, BITS, encoder_version=version), other)
    with pytest.raises(CollectionMismatch, match="holds codes"):
        Reader.open(reference.store, reference.encoder.model_copy(update={"codes": str(other)}))
    floats = plain.model_copy(
        update={"store": plain.store.model_copy(update={"url": f"edge:{tmp_path}/floats"})}
    )
    runs.run(source, floats)
    with pytest.raises(CollectionMismatch, match="holds vectors without codes"):
        Reader.open(floats.store, reference.encoder)


def test_a_moved_codes_folder_is_asked_for_and_taken(to, source, codes, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(codes, moved)
    settings = to()
    settings = settings.model_copy(
        update={"encoder": settings.encoder.model_copy(update={"codes": str(moved)})}
    )
    runs.run(source, settings)
    shutil.rmtree(moved)
    with pytest.raises(EncoderError, match="say where it is with --codes"):
        Reader.open(settings.store, settings.encoder.model_copy(update={"codes": ""}))
    with Reader.open(settings.store, settings.encoder.model_copy(update={"codes": str(codes)})) as reader:
        assert reader.search(QUESTIONS[0])


def test_a_plan_says_what_codes_cost(to, source):
    made = plan(str(source), to())
    number = (made.chunks - 1).bit_length()
    assert made.ram_bytes_per_chunk == 16 + 2 * 16 * number // 8 + 44  # 96 bits, a graph of 16 links, an id
    assert made.disk_bytes_per_chunk == 4 * 96 + 2 * 32 + made.ram_bytes_per_chunk
    alone = plan(str(source), to(store__keep_vectors=False))
    assert alone.disk_bytes_per_chunk == made.disk_bytes_per_chunk - 2 * 32


def test_optimizing_leaves_the_points_as_they_are(reference, tmp_path):
    before = found(reference)
    assert optimize(reference).points == len(points.contents_of(reference.store.url, "docs"))
    assert found(reference) == before
    nowhere = reference.store.model_copy(update={"url": f"edge:{tmp_path}/nowhere"})
    with pytest.raises(CollectionMismatch, match="no collection"):
        optimize(reference.model_copy(update={"store": nowhere}))
    assert not (tmp_path / "nowhere").exists()
