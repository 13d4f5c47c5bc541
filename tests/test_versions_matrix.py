"""`headwater versions eval` and `versions bridge`: what old and new queries find in old, new and mixed indexes."""

import json
from dataclasses import replace

import documents
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs

from pipeline.evaluation.codes import JudgedVectors
from pipeline.evaluation.versions import (
    JudgedPair,
    Way,
    cross,
    found_by,
    measure_versions,
    ways_of,
)
from pipeline.versions import BridgeOptions, fit_bridge
from pipeline.versions.maps import to_unit


def judged_pair(documents=200, queries=40, seed=0):
    """Texts as points of 24 dimensions; the old encoder sees them blurred, the new one clearly, and turned."""
    generator = np.random.default_rng(seed)
    meant = generator.normal(size=(documents, 24))
    right = generator.integers(0, documents, queries)
    asked = meant[right] + 0.3 * generator.normal(size=(queries, 24))
    turn = np.linalg.qr(generator.normal(size=(32, 24)))[0].T
    ids = [f"d{n}" for n in range(documents)]
    qrels = {f"q{n}": {f"d{row}": 1} for n, row in enumerate(right)}

    def side(matrix, blur):
        seen = [
            to_unit(
                (rows @ matrix + blur * generator.normal(size=(len(rows), matrix.shape[1]))).astype(
                    np.float32
                )
            )
            for rows in (meant, asked)
        ]
        return JudgedVectors("toy", seen[0], np.arange(documents), ids, seen[1], list(qrels), qrels)

    return JudgedPair(side(np.eye(24), 0.7), side(turn, 0.0))


def ways(pair, mapped, **more):
    return [Way("it", pair.new.queries, mapped, pair.new.documents, **more)]


def test_a_perfect_bridge_finds_what_the_new_encoder_finds():
    pair = judged_pair()
    found = measure_versions(pair, ways(pair, pair.new.documents))
    (row,) = found["ways"]
    assert found["new/new"]["interval"][0] > 0, "the new encoder is better"
    assert row["new/old"] == found["new/new"]
    assert row["recovered"] == 1
    assert row["verdict"] == {
        "beats_old": True,
        "not_below_old": True,
        "mixed_below_old": [],
        "mixed_worse_than_old": [],
        "falls_after": [],
    }
    for mixed in row["mixed"]:
        assert mixed["ndcg@10"] == found["new/new"]["ndcg@10"]
        assert abs(mixed["new_found"] - mixed["new"]) < 0.1
        assert abs(mixed["new_relevant"] - mixed["new"]) < 0.25


def test_noise_is_no_bridge_and_its_verdict_says_so():
    pair = judged_pair()
    noise = to_unit(np.random.default_rng(1).normal(size=pair.new.documents.shape).astype(np.float32))
    (row,) = measure_versions(pair, ways(pair, noise))["ways"]
    assert row["new/old"]["ndcg@10"] < 0.1
    assert row["recovered"] < 0
    assert not row["verdict"]["not_below_old"]
    assert 0 in row["verdict"]["mixed_worse_than_old"]
    assert [mixed["ndcg@10"] for mixed in row["mixed"]] == sorted(mixed["ndcg@10"] for mixed in row["mixed"])


def test_an_index_that_gets_worse_on_its_way_is_seen():
    pair = judged_pair()
    loud = 3 * pair.new.documents  # longer than any new one: they push all others out
    (row,) = measure_versions(pair, ways(pair, loud))["ways"]
    half = next(mixed for mixed in row["mixed"] if mixed["new"] == 0.5)
    assert half["new_found"] < 0.2 < half["new_relevant"]
    assert 0.0 in row["verdict"]["falls_after"]


def test_every_map_of_a_bridge_is_a_way_and_old_queries_are_compared_where_they_can_be():
    pair = judged_pair()
    bridge = fit_bridge(pair.old.documents, pair.new.documents, BridgeOptions())
    found = measure_versions(pair, list(ways_of(bridge, pair)))
    named = {row["way"]: row for row in found["ways"]}
    assert {f"{way} {method}" for way, of in bridge.maps.items() for method in of} <= set(named)
    assert f"document {bridge.spec.document}, both encoders ask" in named
    assert [row["way"] for row in found["ways"] if row["chosen"]] == [f"document {bridge.spec.document}"]
    for row in found["ways"]:
        assert ("old/new" in row) == (
            row["way"] in {f"document {method}" for method in bridge.maps["document"]}
        )
    chosen = named[f"document {bridge.spec.document}"]
    assert chosen["new/old"]["ndcg@10"] > 0.8 * found["old/old"]["ndcg@10"]
    assert chosen["old/new"]["ndcg@10"] > 0.5 * found["old/old"]["ndcg@10"]
    whole = [row["mixed"][-1]["ndcg@10"] for row in found["ways"] if "both" not in row["way"]]
    assert set(whole) == {found["new/new"]["ndcg@10"]}, "nothing is mapped any more"


def test_documents_are_new_as_wholes():
    pair = judged_pair(documents=50)
    owners = np.repeat(np.arange(50), 2)
    twice = replace(pair.new, documents=np.repeat(pair.new.documents, 2, axis=0), owners=owners)
    both = JudgedPair(
        replace(pair.old, documents=np.repeat(pair.old.documents, 2, axis=0), owners=owners), twice
    )
    first = np.ones((len(pair.new.queries), 1), np.float32)  # all that is new is found before all that is old
    way = Way("it", first, np.full((100, 1), -1, np.float32), np.ones((100, 1), np.float32))
    found = cross(way, both.new, (0.2,)).mixed[0]
    assert found.new_found.mean() == 1.0, "ten of fifty are new, with both of their chunks"


def test_an_upgrade_that_gains_nothing_has_no_share_to_recover():
    pair = judged_pair()
    swapped = JudgedPair(pair.new, pair.old)
    (row,) = measure_versions(swapped, ways(swapped, pair.old.documents))["ways"]
    assert row["recovered"] is None


def test_recall_counts_what_is_relevant():
    pair = judged_pair()
    found = found_by(pair.new.queries, pair.new.documents, pair.new)
    order = np.argsort(-(pair.new.queries @ pair.new.documents.T), axis=1)[:, :10]
    right = [int(next(iter(pair.new.qrels[query]))[1:]) for query in pair.new.query_ids]
    assert found.recall.mean() == np.mean([answer in row for answer, row in zip(right, order, strict=True)])


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    rows = documents.rows(120, most_words=30)
    documents.write(folder / "documents.parquet", rows, 120)
    asked = rows[:8]
    texts = [row["text"][:120] for row in asked]
    pq.write_table(pa.table({"id": [f"q{n}" for n in range(8)], "text": texts}), folder / "queries.parquet")
    qrels = {"query_id": [f"q{n}" for n in range(8)], "document_id": [str(row["id"]) for row in asked]}
    pq.write_table(pa.table(qrels | {"relevance": [1] * 8}), folder / "qrels.parquet")
    return folder


def run(*arguments, cache):
    return runs.inside("versions", *arguments, cache=cache)


def test_a_bridge_is_fitted_and_measured_by_command(judged, tiny_model, other_model, encoder_cache, tmp_path):
    other = other_model
    sample, out = judged / "documents.parquet", tmp_path / "bridge"
    made = run("bridge", tiny_model, other, "--sample", sample, "--out", out, "--json", cache=encoder_cache)
    assert made.returncode == 0, made.stderr
    report = json.loads(made.stdout)
    assert (report["old"]["dims"], report["new"]["dims"]) == (32, 32)
    assert report["texts"] >= 110
    judgements = (
        "--documents",
        sample,
        "--queries",
        judged / "queries.parquet",
        "--qrels",
        judged / "qrels.parquet",
    )
    done = run("eval", tiny_model, other, "--bridge", out, *judgements, "--json", cache=encoder_cache)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["bridge"]["fingerprint"] == report["fingerprint"]
    assert said["queries"] == 8
    assert {mixed["new"] for mixed in said["ways"][0]["mixed"]} == {0, 0.25, 0.5, 0.75, 1}
    turned = run("eval", other, tiny_model, "--bridge", out, *judgements, cache=encoder_cache)
    assert turned.returncode == 1
    assert "was fitted for the old encoder" in turned.stderr
    again = run("bridge", tiny_model, other, "--sample", sample, "--out", out, cache=encoder_cache)
    assert again.returncode == 2
    assert "holds a bridge already" in again.stderr


def test_one_encoder_needs_no_bridge(judged, tiny_model, encoder_cache, tmp_path):
    sample = judged / "documents.parquet"
    done = run(
        "bridge", tiny_model, tiny_model, "--sample", sample, "--out", tmp_path / "b", cache=encoder_cache
    )
    assert done.returncode == 1
    assert "are one encoder" in done.stderr
    assert not (tmp_path / "b").exists()


def test_a_sample_of_too_few_chunks_is_refused(tiny_model, other_model, encoder_cache, tmp_path):
    other = other_model
    documents.write(tmp_path / "few.parquet", documents.rows(9), 9)
    done = run(
        "bridge", tiny_model, other, "--sample", tmp_path / "few.parquet", "--out", tmp_path / "b", cache=encoder_cache
    )  # fmt: skip
    assert done.returncode == 1
    assert "different chunks" in done.stderr
