"""Whichever executor, whichever store: the same ids and payloads, vectors within 1e-5."""

import documents
import points
import pytest
import runs

from pipeline.codes import make_binarizer, save_codes
from pipeline.encoders import load_plain_encoder
from pipeline.local import LocalExecutor
from pipeline.stores import open_store
from workers.executor import RayExecutor


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rows = documents.rows(40, most_words=220)
    rows[7]["text"] = ""  # a rejected one, too
    return documents.write(tmp_path_factory.mktemp("source") / "docs.parquet", rows, row_group=7)


@pytest.fixture(scope="module")
def reference(source, tiny_model, encoder_cache, tmp_path_factory):
    to = runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path_factory.mktemp('reference')}/index")
    summary = runs.run(source, to)
    return summary, points.contents_of(to.store.url, "docs")


@pytest.mark.parametrize("store", ["edge", "local", "grpc", "http"])
@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_the_same_points_everywhere(
    executor, store, source, reference, tiny_model, encoder_cache, tmp_path, request
):
    if (executor, store) == ("local", "edge"):
        pytest.skip("this is the reference")
    url, more = f"{store}:{tmp_path}/index", {}
    if store in ("grpc", "http"):
        server = request.getfixturevalue("qdrant")
        url = server.grpc_url if store == "grpc" else server.rest_url
        more = {"store__prefer_grpc": store == "grpc"}
    to = runs.settings(
        tiny_model, encoder_cache, url, run__lanes=2 if executor == "ray" else 0, run__state=str(tmp_path / "state"),
        store__collection=f"docs-{executor}-{store}", **more,
    )  # fmt: skip
    if executor == "ray":
        request.getfixturevalue("local_ray")
    summary = runs.run(source, to, RayExecutor(to) if executor == "ray" else LocalExecutor())
    expected, points_there = reference
    assert summary.counts == expected.counts
    opened = open_store(to.store)
    try:
        points.assert_same(points_there, points.contents(opened, to.store.collection))
    finally:
        opened.close()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_lanes_of_ray_store_the_same_codes(source, tiny_model, encoder_cache, tmp_path):
    encoder = load_plain_encoder(runs.settings(tiny_model, encoder_cache, "memory:").encoder)
    sample = encoder.encode_queries([row["text"][:200] for row in documents.rows(100, seed=3)])
    encoder.close()
    save_codes(
        make_binarizer("rotation", sample, 16, 2, encoder_version=encoder.spec.version), tmp_path / "codes"
    )
    found = {}
    for name, executor_of in (("local", lambda _: LocalExecutor()), ("ray", RayExecutor)):
        to = runs.settings(
            tiny_model, encoder_cache, f"edge:{tmp_path}/{name}",
            encoder__codes=str(tmp_path / "codes"), run__lanes=1, run__state=str(tmp_path / "state"),
        )  # fmt: skip
        assert runs.run(source, to, executor_of(to)).counts.indexed == 39
        found[name] = points.contents_of(to.store.url, "docs")
    assert found["ray"].keys() == found["local"].keys()
    for id, (payload, vectors) in found["ray"].items():
        expected, theirs = found["local"][id]
        assert payload == expected
        assert vectors["codes"] == theirs["codes"]
