"""Whichever executor, whichever store: the same ids and payloads, vectors within 1e-5."""

import documents
import points
import pytest
import runs

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
