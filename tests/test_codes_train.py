"""`headwater codes train`: from documents, a collection and a file; what cannot be trained on leaves nothing."""

from __future__ import annotations

import json

import documents
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs

from pipeline import train
from pipeline.codes import load_codes
from pipeline.encoders import describe
from pipeline.errors import CollectionMismatch, EncoderError, UsageError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return documents.write(
        tmp_path_factory.mktemp("source") / "documents.parquet", documents.rows(300, most_words=30), 100
    )


def silent(_):
    pass


def trained(sample, out, **more):
    return train.train(sample, out, silent, **{"bits": 2, "dims": 0, "epochs": 2, "seed": 0, **more})


def test_the_command_trains_and_ingest_and_search_take_what_it_wrote(
    source, tiny_model, encoder_cache, tmp_path
):
    def command(*arguments):
        done = runs.command(*arguments, cache=encoder_cache)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    codes, store = tmp_path / "codes", ("--store", f"edge:{tmp_path}/index", "--collection", "docs")
    report = command(
        "codes", "train", "--documents", source, "--encoder", tiny_model, "--bits", "2", "--epochs", "1",
        "--out", codes, "--json",
    )  # fmt: skip
    binarizer = load_codes(codes)
    assert (report["bits"], report["dims"], report["bytes"], report["float_bytes"]) == (2, 32, 8, 128)
    assert report["fingerprint"] == binarizer.fingerprint
    assert report["recall@10"] >= report["recall@10_before"] > 0
    command("ingest", source, "--encoder", tiny_model, "--codes", codes, *store, "--json")
    found = command("search", "river and stone", *store, "--json")
    assert len(found["results"]) == 10


def test_a_collection_and_a_file_give_what_documents_give(
    source, tiny_model, encoder_cache, tmp_path, monkeypatch
):
    to = runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path}/index")
    runs.run(source, to)
    read, stored = train.of_documents(str(source), to, silent), train.of_collection(to, silent)
    assert read.encoder_version == stored.encoder_version == describe(to.encoder).version
    order, other = (np.lexsort(np.round(sample.vectors, 3).T) for sample in (read, stored))
    assert len(read.vectors) > 256
    np.testing.assert_allclose(read.vectors[order], stored.vectors[other], atol=1e-4)
    pq.write_table(pa.table({"vector": list(stored.vectors)}), tmp_path / "vectors.parquet")
    filed = train.of_file(tmp_path / "vectors.parquet")
    assert (filed.vectors == stored.vectors).all()
    assert filed.encoder_version == ""
    first, again = trained(stored, tmp_path / "one"), trained(stored, tmp_path / "two")
    assert (
        first["fingerprint"]
        == again["fingerprint"]
        != trained(stored, tmp_path / "three", seed=1)["fingerprint"]
    )

    with monkeypatch.context() as patched:
        patched.setattr(train, "MOST_VECTORS", 260)
        drawn = train.of_collection(to, silent).vectors
        assert (len(drawn), trained(stored, tmp_path / "few", epochs=0)["vectors"]) == (260, 260)
        rows = {tuple(row) for row in stored.vectors.tolist()}
        assert rows > {tuple(row) for row in drawn.tolist()}

    coded = to.model_copy(
        update={
            "encoder": to.encoder.model_copy(update={"codes": str(tmp_path / "one")}),
            "store": to.store.model_copy(update={"url": f"edge:{tmp_path}/coded"}),
        }
    )
    runs.run(source, coded)
    again = train.of_collection(coded, silent)
    assert again.encoder_version == read.encoder_version
    np.testing.assert_allclose(
        np.sort(again.vectors.sum(axis=1)), np.sort(read.vectors.sum(axis=1)), atol=0.02
    )
    unkept = coded.model_copy(
        update={
            "store": coded.store.model_copy(update={"url": f"edge:{tmp_path}/bare", "keep_vectors": False})
        }
    )
    runs.run(source, unkept)
    with pytest.raises(CollectionMismatch, match="codes without their vectors"):
        train.of_collection(unkept, silent)


def test_what_cannot_be_trained_on_leaves_nothing(tmp_path):
    good = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    constant, broken = good.copy(), good.copy()
    constant[:, 3], broken[7, 7] = 1, np.nan
    for vectors, said in (
        (good[:50], "At least 256"),
        (constant, "1 of 16 dimensions"),
        (broken, "1 of 400 vectors"),
    ):
        with pytest.raises(EncoderError, match=said):
            trained(train.Sample(vectors, ""), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    trained(train.Sample(good, ""), tmp_path / "out")
    with pytest.raises(UsageError, match="holds codes already"):
        train.check_out(tmp_path / "out")


@pytest.mark.parametrize("column", [[[1.0, 2.0], [1.0]], [None, [1.0]], ["text", "text"]])
def test_a_file_without_vectors_is_named(column, tmp_path):
    pq.write_table(pa.table({"vector": column}), tmp_path / "vectors.parquet")
    with pytest.raises(UsageError, match="cannot be read"):
        train.of_file(tmp_path / "vectors.parquet")
    with pytest.raises(UsageError, match="cannot be read"):
        train.of_file(tmp_path / "missing.parquet")


def test_the_command_trains_codes_beside_older_ones(source, tiny_model, wide_model, encoder_cache, tmp_path):
    old, out = tmp_path / "old", tmp_path / "new"
    to = runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path}/index")
    trained(train.of_documents(str(source), to, silent), old)
    common = ("codes", "train", "--encoder", wide_model, "--set", "chunking.max_tokens=48", "--epochs", "1")

    def command(*arguments):
        return runs.inside(*common, *arguments, cache=encoder_cache)

    beside = ("--compatible-with", old, "--old-encoder")
    done = command("--documents", source, *beside, tiny_model, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    report, binarizer = json.loads(done.stdout), load_codes(out)
    assert (report["fingerprint"], report["bits"], report["dims"]) == (binarizer.fingerprint, 2, 32)
    assert report["compatible_with"] == binarizer.spec.compatible_with == load_codes(old).fingerprint
    assert binarizer.spec.input_dims == 48
    assert report["texts"] > 256
    for arguments, said in (
        ((*beside, tiny_model, "--bits", "1"), "those of the older codes"),
        (beside[:2], "--old-encoder and --documents"),
        ((*beside, wide_model), "one encoder"),
    ):
        refused = command("--documents", source, *arguments, "--out", tmp_path / "none")
        assert refused.returncode != 0
        assert said in " ".join(refused.stderr.split())
        assert not (tmp_path / "none").exists()
