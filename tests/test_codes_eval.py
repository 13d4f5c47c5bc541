"""`headwater codes eval` and `codes plan`: one row a method and size, and what to store in so many bytes."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import documents
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs

from pipeline.codes import make_binarizer, save_codes
from pipeline.encoders import describe
from pipeline.errors import UsageError
from pipeline.evaluation.choice import choose
from pipeline.stores.quantized import QUANTIZATIONS, rank_quantized

WIDTH = 32


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """40 documents, and for each of some the query that is its own text."""
    folder = tmp_path_factory.mktemp("judged")
    rows = documents.rows(40)
    documents.write(folder / "documents.parquet", rows, 40)
    asked = rows[:8]
    texts = [row["text"][:120] for row in asked]
    pq.write_table(pa.table({"id": [f"q{n}" for n in range(8)], "text": texts}), folder / "queries.parquet")
    qrels = {"query_id": [f"q{n}" for n in range(8)], "document_id": [str(row["id"]) for row in asked]}
    pq.write_table(pa.table(qrels | {"relevance": [1] * 8}), folder / "qrels.parquet")
    return folder


@pytest.fixture(scope="module")
def table(judged, tiny_model, encoder_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    version = describe(runs.settings(tiny_model, encoder_cache, "edge:none").encoder).version
    sample = np.random.default_rng(0).standard_normal((300, WIDTH)).astype(np.float32)
    save_codes(make_binarizer("rotation", sample, WIDTH, 2, encoder_version=version), folder / "codes")
    done = evaluate(
        judged, tiny_model, encoder_cache, "--codes", folder / "codes", "--plot", folder / "q.svg", "--json"
    )
    assert done.returncode == 0, done.stderr
    (folder / "table.json").write_text(done.stdout)
    return folder


def evaluate(judged, model, cache, *more):
    return runs.inside(
        "codes", "eval", "--documents", judged / "documents.parquet", "--queries", judged / "queries.parquet",
        "--qrels", judged / "qrels.parquet", "--encoder", model, *more, cache=cache,
    )  # fmt: skip


def test_every_method_and_size_has_a_row_at_equal_bytes(table):
    said = json.loads((table / "table.json").read_text())
    rows = {row["method"]: row for row in said["rows"]}
    assert (said["queries"], said["dims"]) == (8, WIDTH)
    assert rows["float32"]["kept"] == rows["float32"]["recall@10"] == 1
    given = f"rotation 32x2 ({table / 'codes'})"
    assert rows[given]["codes"] == rows[f"{given}, coded queries"]["codes"] == str(table / "codes")
    assert rows[given]["bytes"] == WIDTH * 2 // 8
    same = {name for name, row in rows.items() if row["bytes"] == WIDTH // 4}
    assert {"itq 16x4", "itq 32x2", "sign 32x2", "pca 16 int4", "Qdrant TurboQuant 2 bit"} <= same
    assert set(QUANTIZATIONS) <= set(rows)
    for row in rows.values():
        low, high = row["kept_interval"]
        assert low <= row["kept"] <= high
        assert row["recall@10"] <= row["rescored_recall@10"] == 1, "40 candidates of 40"
    texts = {
        text.text for text in ElementTree.parse(table / "q.svg").iter("{http://www.w3.org/2000/svg}text")
    }
    assert set(rows) <= texts


def test_a_person_gets_a_table(judged, tiny_model, encoder_cache):
    done = evaluate(judged, tiny_model, encoder_cache)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "Qdrant TurboQuant 4 bit" in line)
    assert line.split()[0] == str(WIDTH // 2)
    assert "%" in line


def test_codes_of_another_encoder_are_refused_before_anything_is_embedded(
    judged, tiny_model, encoder_cache, tmp_path
):
    sample = np.random.default_rng(0).standard_normal((300, WIDTH)).astype(np.float32)
    save_codes(make_binarizer("sign", sample, WIDTH, 1, encoder_version="another"), tmp_path / "codes")
    done = evaluate(judged, tiny_model, encoder_cache, "--codes", tmp_path / "codes")
    assert done.returncode != 0
    assert "another" in done.stderr
    assert "embedding" not in done.stderr
    done = evaluate(judged, tiny_model, encoder_cache, "--plot", tmp_path / "nothing" / "q.svg")
    assert done.returncode != 0
    assert "mkdir" in done.stderr


def test_the_plan_is_the_best_that_fits_and_says_its_room(table):
    file = table / "table.json"
    rows = json.loads(file.read_text())["rows"]
    for most in (4, 8, 16, 128):
        plan = choose(file, most, 1000)
        fitting = [row for row in rows if row["bytes"] <= most]
        assert plan["best"]["kept"] == max(row["kept"] for row in fitting)
        assert plan["best"]["bytes"] <= most
    assert choose(file, 4, 1000)["codes"] is None
    codes = choose(file, 8, 1000)["codes"]
    assert codes["ram"] >= codes["bytes"] == 8
    assert codes["disk_with_vectors"] == codes["disk"] + 2 * WIDTH
    done = runs.inside("codes", "plan", "--bytes-per-document", "8", "--table", file, "--json", cache=table)
    assert json.loads(done.stdout) == choose(file, 8, 1_000_000)


def test_no_plan_without_room_or_table(table, tmp_path):
    with pytest.raises(UsageError, match="At least 4"):
        choose(table / "table.json", 3, 1000)
    (tmp_path / "other.json").write_text('{"rows": [{}]}')
    for name in ("other.json", "none.json"):
        with pytest.raises(UsageError, match="cannot be read"):
            choose(tmp_path / name, 100, 1000)


def test_the_engine_ranks_by_the_compressed_vectors():
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((600, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[:20] + 0.05 * generator.standard_normal((20, 64)).astype(np.float32)
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]

    found = {name: rank_quantized(vectors, queries, one, 10) for name, one in QUANTIZATIONS.items()}
    recalls = [
        np.mean(
            [len(np.intersect1d(*pair)) / 10 for pair in zip(found[f"Qdrant {name}"], exact, strict=True)]
        )
        for name in ("TurboQuant 1 bit", "TurboQuant 2 bit", "TurboQuant 4 bit")
    ]
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.8
    assert recalls[-1] > 0.85
    # each setting is in force: none ranks as the floats do, nor as another one
    rankings = [ranked.tobytes() for ranked in (*found.values(), exact.astype(np.int64))]
    assert len(set(rankings)) == len(rankings)
