"""Several vectors of one point: sizes of one encoder, exits of its layers, and other encoders beside it."""

import json
import pickle
import shutil
import threading
from dataclasses import replace
from types import SimpleNamespace

import documents
import numpy as np
import onnx
import points
import pyarrow.parquet as pq
import pytest
import runs
from models import package_folder

from pipeline.config import EncoderConfig, load
from pipeline.encoders import describe, describe_aspects, load_encoders, prepare
from pipeline.encoders.aspects import prepare_aspects
from pipeline.encoders.aspects import runs as runs_of
from pipeline.encoders.exported import GRAPH
from pipeline.errors import CollectionMismatch, UsageError
from pipeline.ingest import ingest
from pipeline.job import Job
from pipeline.lane import Lane
from pipeline.local import LocalExecutor
from pipeline.plan import plan
from pipeline.search import Reader
from pipeline.sources import open_source
from pipeline.stores import collection, open_store
from pipeline.tokens import load_tokenizer
from pipeline.versions import AspectContract

SIZES = {
    "aspects__small__dims": 16,
    "aspects__half__layers": 1,
    "aspects__tiny__layers": 1,
    "aspects__tiny__dims": 8,
}
PROMPTED = {"aspects__said__document_prompt": "one of the passages: "}


@pytest.fixture
def settings(tiny_model, encoder_cache, tmp_path):
    def make(store="index", model=tiny_model, **more):
        return runs.settings(model, encoder_cache, f"edge:{tmp_path}/{store}", **more)

    return make


@pytest.fixture
def source(tmp_path):
    return documents.write(tmp_path / "docs.parquet", documents.rows(12), row_group=4)


def vectors(url, name):
    """Point id -> one of its vectors."""
    return {
        id: vector[name] if name else vector for id, (_, vector) in points.contents_of(url, "docs").items()
    }


def assert_as_alone(source, several, name, alone):
    """The vector `name` of each point is what a collection of that encoder alone holds."""
    assert runs.run(source, alone).exit_code == 0
    expected, found = vectors(alone.store.url, ""), vectors(several.store.url, name)
    assert expected.keys() == found.keys()
    for id, vector in expected.items():
        np.testing.assert_allclose(found[id], vector, atol=2e-6)


def test_sizes_of_one_encoder_are_what_each_alone_would_have_made(source, settings):
    several = settings(store__vector_name="main", **SIZES)
    assert runs.run(source, several).exit_code == 0
    assert_as_alone(source, several, "main", settings("alone"))
    assert_as_alone(source, several, "half", settings("half", encoder__layers=1))
    for _, named in points.contents_of(several.store.url, "docs").values():
        for whole, part in (("main", "small"), ("half", "tiny")):
            some = np.array(named[whole][: len(named[part])])
            np.testing.assert_allclose(named[part], some / np.linalg.norm(some), atol=2e-6)


@pytest.mark.parametrize("long", ["truncate", "error"])
def test_aspects_of_an_encoder_that_cuts_or_refuses_long_documents_take_what_it_keeps(long, source, settings):
    several = settings(store__vector_name="main", chunking__max_tokens=0, encoder__long=long, **SIZES)
    main = describe(several.encoder)
    aspects = describe_aspects(several, main)
    (together,) = runs_of({"": main, **aspects})

    assert {spec.settings["long"] for spec in aspects.values()} == {"split"}
    assert [dict(exit.dims) for exit in together] == [{"": 32, "small": 16}, {"half": 32, "tiny": 8}]
    counts = runs.run(source, several).counts
    assert counts.indexed + counts.rejected == 12
    assert (counts.rejected > 0) == (long == "error")
    alone = settings("half", chunking__max_tokens=0, encoder__long=long, encoder__layers=1)
    assert runs.run(source, alone).counts == counts
    expected, found = vectors(alone.store.url, ""), vectors(several.store.url, "half")
    assert expected.keys() == found.keys()
    for id, vector in expected.items():
        np.testing.assert_allclose(found[id], vector, atol=2e-6)


def test_other_encoders_embed_the_chunks_of_the_main_one(tmp_path, settings, wide_model):
    source = documents.write(tmp_path / "short.parquet", documents.rows(12, most_words=12))
    several = settings(store__vector_name="main", aspects__wide__model=str(wide_model), **PROMPTED)
    assert runs.run(source, several).exit_code == 0
    assert_as_alone(source, several, "wide", settings("wide", wide_model))
    prompted = settings("said", encoder__document_prompt="one of the passages: ")
    assert_as_alone(source, several, "said", prompted)


def test_late_chunking_beside_plain_chunks(source, settings):
    several = settings(store__vector_name="main", aspects__late__long="late-chunking")
    assert runs.run(source, several).exit_code == 0
    assert_as_alone(source, several, "late", settings("late", encoder__long="late-chunking"))


def spelling(folder, model):
    """The model with a tokenizer that makes a token of every letter."""
    shutil.copytree(model, folder)
    definition = json.loads((folder / "tokenizer.json").read_text())
    letters = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    definition["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [definition["pre_tokenizer"], letters],
    }
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    return folder


def test_a_chunk_that_an_aspect_cannot_take_whole_costs_its_document_and_no_other(
    tmp_path, settings, tiny_model
):
    rows = [{"id": "long", "text": "letters " * 30}, {"id": "short", "text": "A word."}]
    source = documents.write(tmp_path / "docs.parquet", rows)
    spelt = spelling(tmp_path / "spelling", tiny_model)
    to = settings(store__vector_name="main", aspects__spelt__model=str(spelt))
    summary = runs.run(source, to)
    assert (summary.counts.indexed, summary.counts.rejected) == (1, 1)
    (letter,) = pq.read_table(summary.dead_letter).to_pylist()
    assert (letter["document_id"], letter["stage"], letter["reason"]) == ("long", "encoder", "too_long")
    assert "aspect" in letter["message"]
    stored = points.contents_of(to.store.url, "docs").values()
    assert {payload["headwater"]["document_id"] for payload, _ in stored} == {"short"}


def test_a_prompt_that_leaves_no_room_for_a_chunk_is_refused_before_there_is_a_collection(source, settings):
    with pytest.raises(
        UsageError, match=r"aspect 'said'.*up to 69 tokens.* takes 64.*max_tokens to 59 or less"
    ):
        runs.run(source, settings(store__vector_name="main", chunking__max_tokens=64, **PROMPTED))
    store = open_store(settings().store)
    try:
        assert collection.resolve(store, "docs") is None
    finally:
        store.close()


def test_a_stopped_run_is_finished_by_the_next_and_deletes_need_no_vectors(tmp_path, settings):
    rows = documents.rows(30)
    file = documents.write(tmp_path / "docs.parquet", rows, row_group=4)
    several = settings(store__vector_name="main", **SIZES, **PROMPTED, source__snapshot=True)
    stop = threading.Event()
    halted = ingest(str(file), several, LocalExecutor(), stop, lambda p: p.documents >= 8 and stop.set())
    assert halted.interrupted or halted.counts.read == 30
    assert runs.run(file, several).exit_code == 0
    fresh = settings("fresh", store__vector_name="main", **SIZES, **PROMPTED)
    runs.run(file, fresh)
    left, right = (points.contents_of(to.store.url, "docs") for to in (several, fresh))
    assert left.keys() == right.keys()
    for id, (payload, named) in left.items():
        assert payload == right[id][0]
        assert named.keys() == {"main", "small", "half", "tiny", "said"}
        for name, vector in named.items():
            np.testing.assert_allclose(vector, right[id][1][name], atol=1e-5)
    documents.write(file, rows[:27], row_group=4)
    again = runs.run(file, several)
    assert (again.counts.unchanged, again.counts.removed, again.exit_code) == (27, 3, 0)


def test_only_the_aspects_that_a_collection_was_made_with_are_written(source, settings, other_model):
    several = settings(store__vector_name="main", **SIZES)
    runs.run(source, several)
    before = points.contents_of(several.store.url, "docs")
    for wrong, said in (
        (settings(store__vector_name="main"), "no aspects here, but .* aspects half .*, small"),
        (settings(store__vector_name="main", **SIZES, aspects__more__dims=4), "more .* here, but"),
        (settings(store__vector_name="main", **SIZES | {"aspects__small__dims": 12}), "'small'.*version"),
        (
            settings(store__vector_name="main", **SIZES, aspects__half__model=str(other_model)),
            "'half'.*version",
        ),
    ):
        with pytest.raises(CollectionMismatch, match=said):
            runs.run(source, wrong)
    assert points.contents_of(several.store.url, "docs").keys() == before.keys()
    plain = settings("plain", store__vector_name="main")
    runs.run(source, plain)
    with pytest.raises(CollectionMismatch, match=r"aspects small .* here, but .* no aspects"):
        runs.run(source, settings("plain", store__vector_name="main", aspects__small__dims=16))


def test_a_collection_without_aspects_says_nothing_of_them(source, settings):
    to = settings()
    runs.run(source, to)
    store = open_store(to.store)
    try:
        assert (
            "aspects" not in collection.read_metadata(store, collection.resolve(store, "docs"))["headwater"]
        )
    finally:
        store.close()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"aspects__small__dims": 16}, "store.vector_name"),
        ({"aspects__main__dims": 16, "store__vector_name": "main"}, "no name twice"),
        ({"aspects__small__dims": 33, "store__vector_name": "main"}, "aspect 'small'.*32"),
        ({"aspects__small__layers": 3, "store__vector_name": "main"}, "aspect 'small'.*2"),
        ({"aspects__small__max_tokens": 40, "store__vector_name": "main"}, "chunks of up to 48 .* takes 40"),
        ({"aspects__small__long": "truncate", "store__vector_name": "main"}, "aspect 'small'.*truncate"),
        (
            {
                "aspects__late__long": "late-chunking",
                "chunking__overlap_tokens": 4,
                "store__vector_name": "main",
            },
            "aspect 'late'.*overlap",
        ),
    ],
)
def test_aspects_that_cannot_be_are_refused_before_anything_is_written(
    more, said, source, settings, tmp_path
):
    with pytest.raises(UsageError, match=said):
        runs.run(source, settings(**more))
    assert not (tmp_path / "index").exists()


def test_a_search_by_an_aspect_loads_its_encoder_alone(
    source, settings, wide_model, tiny_model, encoder_cache
):
    several = settings(
        store__vector_name="main", aspects__half__layers=1, aspects__wide__model=str(wide_model)
    )
    runs.run(source, several)
    alone = settings("alone", wide_model)
    runs.run(source, alone)
    query = "a question about rivers and stones"

    def ask(of, vector="", model=""):
        where = {"model": str(model)} if model else {}
        how = EncoderConfig(cache=str(encoder_cache), provider="cpu", **where)
        with Reader.open(of.store, how, vector=vector) as reader:
            return reader.contract, reader.search(query, 5)

    contract, found = ask(several, "wide")
    theirs, expected = ask(alone)
    assert (contract.dims, contract.encoder_version) == (48, theirs.encoder_version)
    for one, other in zip(found, expected, strict=True):
        assert (one.document_id, one.chunk_index, one.text) == (
            other.document_id,
            other.chunk_index,
            other.text,
        )
        assert one.encoder_version == other.encoder_version == contract.encoder_version
        assert one.score == pytest.approx(other.score, abs=1e-5)
    assert ask(several) == ask(several, "main") != ask(several, "half")
    with pytest.raises(CollectionMismatch, match=r"no vector 'large'.*One of main, half, wide"):
        ask(several, "large")
    with pytest.raises(CollectionMismatch, match="no vector 'half'"):
        ask(alone, "half")
    with pytest.raises(CollectionMismatch, match=r"aspect 'wide'.*version .*version") as refused:
        ask(several, "wide", model=tiny_model)  # its model is another one now
    assert "reindex" not in str(refused.value)


def test_sizes_and_exits_share_a_run_and_other_encoders_do_not(settings, wide_model):
    several = settings(store__vector_name="main", **SIZES, aspects__wide__model=str(wide_model))
    main = describe(several.encoder)
    found = [
        [dict(exit.dims) for exit in together]
        for together in runs_of({"": main, **describe_aspects(several, main)})
    ]
    assert found == [[{"": 32, "small": 16}, {"half": 32, "tiny": 8}], [{"wide": 48}]]


def test_encoders_whose_graph_knows_the_querys_prompt_share_no_run(settings):
    main = describe(settings().encoder)
    asked = replace(main, query_prompt="asked: ")
    trained = [replace(one, modules=("latent-attention:a", "mean", "normalize")) for one in (main, asked)]

    assert len(runs_of({"": main, "asked": asked})) == 1
    assert len(runs_of(dict(zip(("", "asked"), trained, strict=True)))) == 2


def test_exits_of_one_model_are_one_graph_with_its_weights_once(settings):
    encoder = load_encoders(settings(store__vector_name="main", **SIZES))
    (run,) = prepare_aspects(settings(store__vector_name="main", **SIZES), encoder.spec)
    whole, half = (prepare(spec, settings(encoder__layers=spec.layers).encoder) for spec in run.specs)
    size, alone = ((folder / GRAPH).stat().st_size for folder in (run.folder, whole))
    assert size < 1.05 * alone
    layers = [
        sum(node.op_type == "Attention" for node in onnx.load(str(folder / GRAPH)).graph.node)
        for folder in (whole, half, run.folder)
    ]
    assert layers == [2, 1, 2]


def test_settings_with_aspects_travel_to_other_processes(settings):
    several = settings(store__vector_name="main", **SIZES)
    assert pickle.loads(pickle.dumps(several)) == several


def test_vectors_come_in_the_order_of_the_settings_whatever_is_run_first(settings):
    several = settings(store__vector_name="main", aspects__half__layers=1, aspects__small__dims=16)
    encoder = load_encoders(several)
    try:
        ids = [
            encoder.tokenizer.encode(text) for text in ("A river.", "The deep blue sea, and a stone in it.")
        ]
        rows = encoder.encode(ids)
    finally:
        encoder.close()
    assert list(encoder.specs) == ["", "half", "small"]
    assert rows.shape == (2, encoder.width) == (2, 80)
    small = rows[:, :16] / np.linalg.norm(rows[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose(rows[:, 64:], small, atol=1e-6)


def test_a_smaller_main_encoder_is_a_slice_of_its_aspect(settings):
    whole, small = settings(), settings(store__vector_name="main", encoder__dims=16, aspects__whole__dims=0)
    ids = [load_encoders(whole).tokenizer.encode("A river, and a stone in it.")]
    vector, row = (load_encoders(to).encode(ids)[0] for to in (whole, small))
    np.testing.assert_allclose(row, [*vector[:16] / np.linalg.norm(vector[:16]), *vector], atol=1e-6)


def test_the_file_and_the_environment_name_aspects(tmp_path, monkeypatch):
    file = tmp_path / "config.toml"
    file.write_text('[aspects.small]\ndims = 128\n[aspects.other]\nmodel = "m"\nquery_prompt = "q: "\n')
    monkeypatch.setenv("HEADWATER_ASPECTS__SMALL__LAYERS", "3")
    loaded = load(file, {"encoder.precision": "int8", "encoder.threads": 2, "aspects.other.dims": 64})
    assert list(loaded.aspects) == ["small", "other"]
    small, other = (aspect.encoder(loaded.encoder) for aspect in loaded.aspects.values())
    assert (small.model, small.dims, small.layers, small.precision) == (loaded.encoder.model, 128, 3, "int8")
    assert (other.model, other.dims, other.precision, other.query_prompt) == ("m", 64, "fp32", "q: ")
    assert small.threads == other.threads == 2
    with pytest.raises(UsageError, match=r"unknown key 'size' of \[aspects.small\].*Known keys: .*dims"):
        load(None, {"aspects.small.size": 3})


def test_codes_leave_no_place_for_aspects(settings):
    coded = settings(store__vector_name="main", aspects__small__dims=16, encoder__codes="codes")
    with pytest.raises(UsageError, match=r"aspects small with encoder\.codes"):
        describe_aspects(coded, describe(settings().encoder))


class Halved:
    """An encoder of two vectors side by side, of which the second is zero or not finite for some texts."""

    spec = SimpleNamespace(
        version="f" * 64, source="fake", dims=8, max_tokens=64, codes=None, long=None, row="text",
        settings={"long": "split"},
    )  # fmt: skip
    late, batch_tokens = False, 1024

    def __init__(self):
        self.tokenizer = load_tokenizer(package_folder() / "tokenizer.json")
        self.bad = {int(self.tokenizer.encode(w)[1]): v for w, v in (("zebra", 0), ("lion", np.nan))}

    def encode(self, token_ids, documents):
        second = [self.bad.get(int(ids[1]), 1) for ids in token_ids]
        return np.concatenate(
            [np.ones((len(second), 8)), np.outer(second, np.ones(4))], axis=1, dtype=np.float32
        )


def test_one_vector_of_several_that_is_unusable_rejects_its_document(settings, tmp_path):
    to = settings(store__vector_name="main")
    rows = [{"id": text, "text": text} for text in ("zebra", "lion", "river")]
    source = open_source(str(documents.write(tmp_path / "d.parquet", rows)), to.source, tmp_path / "scratch")
    store = open_store(to.store)
    try:
        physical = collection.create(store, "docs", to.store, 8, {}, aspects={"small": 4})
        small = AspectContract("v", "m", "fp32", 64, "", "", 4)
        job = Job(to, Halved.spec, physical, "c", aspects={"small": small})
        ack = Lane(job, Halved(), store).run_split(source.splits[0])
        assert {(one.document_id, one.reason) for one in ack.rejected} == {
            ("zebra", "unusable_vector"),
            ("lion", "unusable_vector"),
        }
        (stored,) = points.contents(store, "docs").values()
        assert {name: len(vector) for name, vector in stored[1].items()} == {"main": 8, "small": 4}
    finally:
        store.close()


def test_a_plan_counts_all_vectors_of_a_point(source, settings, wide_model):
    found = plan(
        str(source), settings(store__vector_name="main", **SIZES, aspects__wide__model=str(wide_model))
    )
    assert found.vector_bytes == found.chunks * 4 * (32 + 48 + 16 + 32 + 8)
    assert found.tokens_per_second > 0
