"""Codes measured against the floats: what is exact keeps everything, what is noise nothing, intervals are paired."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from pipeline.codes import make_binarizer
from pipeline.errors import UsageError
from pipeline.evaluation.codes import JudgedVectors, Method, coded, floats, measure, restored, summarise
from pipeline.evaluation.figure import draw_quality
from pipeline.evaluation.retrieval import rank


def judged_set(seed, documents=400, queries=25, width=32):
    generator = np.random.default_rng(seed)
    chunks = generator.standard_normal((documents + 40, width)).astype(np.float32)
    chunks /= np.linalg.norm(chunks, axis=1, keepdims=True)
    owners = np.concatenate([np.arange(documents), generator.integers(0, documents, 40)])
    relevant = generator.integers(0, documents, queries)
    asked = chunks[relevant] + 0.15 * generator.standard_normal((queries, width)).astype(np.float32)
    ids = [f"d{n}" for n in range(documents)]
    qrels = {f"q{n}": {f"d{row}": 1, "d0": 0} for n, row in enumerate(relevant)}
    qrels["q0"] = {"d1": 0}  # nothing relevant: not judged
    return JudgedVectors(f"set{seed}", chunks, owners, ids, asked, [f"q{n}" for n in range(queries)], qrels)


SETS = [judged_set(0), judged_set(1, documents=90)]


def rows_of(*methods):
    measured = {method.name: [measure(method, one) for one in SETS] for method in methods}
    rows = summarise(measured, [measure(floats(32), one) for one in SETS])
    return {row.method: row for row in rows}


def noise(judged, k):
    scores = np.random.default_rng(5).random((len(judged.queries), len(judged.ids)))
    return np.argsort(scores, axis=1)[:, :k]


def binary(bits, query, name="codes"):
    def make(judged):
        return make_binarizer("rotation", judged.documents, 32, bits)

    return coded(f"{name} {bits} {query}", make, query, 4 * bits, name.startswith("learned"))


def test_floats_keep_everything_and_noise_nothing():
    rows = rows_of(floats(32), Method("noise", 1, noise))
    assert rows["float32"].kept == rows["float32"].recall10 == rows["float32"].rescored_kept == 1.0
    assert rows["float32"].kept_interval == (1.0, 1.0)
    assert rows["noise"].recall10 < 0.2
    assert rows["noise"].kept < 0.2
    assert 0.1 < rows["noise"].rescored_recall10 < 0.5, "40 candidates of 90 and 400 hold some of the best 10"


def test_more_bits_a_float_query_and_a_rescore_each_keep_more():
    rows = rows_of(binary(1, "code"), binary(1, "float"), binary(2, "float"), binary(4, "float"))
    recalls = [
        rows[name].recall10 for name in ("codes 1 code", "codes 1 float", "codes 2 float", "codes 4 float")
    ]
    assert recalls == sorted(recalls)
    assert recalls[-1] > 0.85
    assert recalls[0] < 0.7
    for row in rows.values():
        assert row.rescored_recall10 > row.recall10 or row.recall10 == 1
    assert [row.bytes for row in rows.values()] == [4, 4, 8, 16]


def test_a_trained_method_is_held_against_the_best_untrained_one_of_its_bytes():
    learned = binary(2, "float", "learned")
    rows = rows_of(binary(1, "code"), binary(1, "float"), learned, binary(4, "float"))
    row = rows[learned.name]
    best = max(rows["codes 1 code"].ndcg, rows["codes 1 float"].ndcg)
    assert row.gain is not None
    assert np.isclose(row.gain, row.ndcg - best)
    assert row.gain_interval[0] <= row.gain <= row.gain_interval[1]
    assert rows["codes 1 float"].gain is None


def test_a_ranking_that_comes_up_short_counts_what_is_missing_as_not_found():
    def short(judged, k):
        found = rank(judged.queries, judged.documents, judged.owners, k)[0]
        found[:, 5:] = -1
        return found

    row = rows_of(Method("short", 4, short))["short"]
    assert row.recall10 == 0.5
    assert row.rescored_recall10 == 0.5


def test_compressed_vectors_are_ranked_as_they_come_back():
    half = restored(
        "half", lambda judged: (judged.queries, judged.documents.astype(np.float16).astype(np.float32)), 64
    )
    assert rows_of(half)["half"].recall10 > 0.98


def test_floats_that_find_nothing_are_nothing_to_be_measured_against():
    lost = replace(SETS[0], qrels={query: {"none": 1} for query in SETS[0].query_ids})
    nothing = [measure(floats(32), lost)]
    with pytest.raises(UsageError, match="the floats find none"):
        summarise({"float32": nothing}, nothing)


def test_few_queries_most_of_which_find_nothing_have_an_interval():
    first = SETS[0].qrels["q1"]
    qrels = {"q1": first, "q2": {"none": 1}, "q3": {"none": 1}}
    few = [measure(floats(32), replace(SETS[0], qrels=qrels))]
    (row,) = summarise({"float32": few}, few)
    assert row.kept_interval == (1.0, 1.0)


def test_the_figure_shows_every_method(tmp_path):
    rows = rows_of(binary(1, "float"), binary(2, "float", "learned <b>"), floats(32))
    draw_quality(list(rows.values()), tmp_path / "quality.svg", "nDCG@10 & bytes")
    root = ElementTree.parse(tmp_path / "quality.svg").getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert set(rows) <= set(texts)


def test_labels_of_methods_that_are_alike_do_not_cover_each_other(tmp_path):
    row = next(iter(rows_of(floats(32)).values()))
    draw_quality([replace(row, method=f"m{n}") for n in range(5)], tmp_path / "quality.svg")
    root = ElementTree.parse(tmp_path / "quality.svg").getroot()
    labels = [e for e in root.iter("{http://www.w3.org/2000/svg}text") if (e.text or "").startswith("m")]
    heights = sorted(float(label.get("y")) for label in labels)
    assert len(heights) == 5
    assert min(np.diff(heights)) >= 9
