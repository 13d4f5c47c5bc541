from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.evaluation import rank, read_qrels, read_queries, retrieval_metrics


def gain(relevance: float, position: int) -> float:
    return relevance / math.log2(position + 1)


# --- metrics


def test_ndcg_of_graded_judgements_is_the_hand_computed_one():
    qrels = {"q": {"a": 4, "b": 2, "c": 1, "d": 0}}
    found = retrieval_metrics({"q": ["c", "x", "a", "d"]}, qrels)
    got = gain(1, 1) + gain(4, 3)
    ideal = gain(4, 1) + gain(2, 2) + gain(1, 3)
    assert found["ndcg@10"] == pytest.approx(got / ideal)
    assert found["recall@100"] == pytest.approx(2 / 3)
    assert found["queries"] == 1


def test_a_perfect_run_scores_one():
    qrels = {"q": {f"d{grade}": grade for grade in (1, 2, 3, 4)}}
    found = retrieval_metrics({"q": ["d4", "d3", "d2", "d1"]}, qrels)
    assert found == {"ndcg@10": pytest.approx(1.0), "recall@100": 1.0, "queries": 1}


def test_only_ten_documents_count_for_ndcg_and_a_hundred_for_recall():
    run = [f"x{number}" for number in range(200)]
    assert retrieval_metrics({"q": [*run[:10], "a"]}, {"q": {"a": 1}})["ndcg@10"] == 0
    assert retrieval_metrics({"q": [*run[:9], "a"]}, {"q": {"a": 1}})["ndcg@10"] == pytest.approx(gain(1, 10))
    assert retrieval_metrics({"q": [*run[:99], "a"]}, {"q": {"a": 1}})["recall@100"] == 1
    assert retrieval_metrics({"q": [*run[:100], "a"]}, {"q": {"a": 1}})["recall@100"] == 0


def test_queries_without_a_relevant_document_do_not_count_and_those_without_results_do():
    qrels = {"found": {"a": 1}, "missed": {"a": 1}, "unjudged": {"a": 0}, "bad": {"a": -1}}
    run = {"found": ["a"], "unjudged": ["a"], "bad": ["a"], "unknown": ["a"]}
    assert retrieval_metrics(run, qrels) == {"ndcg@10": 0.5, "recall@100": 0.5, "queries": 2}
    assert retrieval_metrics({}, qrels) == {"ndcg@10": 0, "recall@100": 0, "queries": 2}


def test_a_negative_relevance_counts_as_none():
    qrels = {"q": {"a": -2, "b": 1}}
    assert retrieval_metrics({"q": ["a", "b"]}, qrels)["ndcg@10"] == pytest.approx(gain(1, 2))


def test_the_order_of_the_run_decides_not_the_names():
    for names in (["a", "b"], ["b", "a"]):
        assert retrieval_metrics({"q": names}, {"q": {names[1]: 1}})["ndcg@10"] == pytest.approx(gain(1, 2))


def test_judgements_without_any_relevant_document_are_refused():
    with pytest.raises(UsageError, match="judgements of 1 queries"):
        retrieval_metrics({"q": ["a"]}, {"q": {"a": 0}})


# --- ranking


def naive(queries, vectors, owners, k):
    """Each document's best chunk, sorted by score and then number, one query at a time."""
    ranked = []
    for query in queries:
        best: dict[int, float] = {}
        for vector, owner in zip(vectors, owners, strict=True):
            best[int(owner)] = max(best.get(int(owner), -math.inf), float(query @ vector))
        ranked.append(sorted(best.items(), key=lambda entry: (-entry[1], entry[0]))[:k])
    return ranked


@st.composite
def searches(draw):
    dims = draw(st.integers(1, 4))
    chunks = draw(st.integers(1, 30))
    # Small integers: products are exact in any order of summation, and ties are common.
    numbers = st.lists(st.integers(-2, 2), min_size=dims, max_size=dims)
    queries = draw(st.lists(numbers, min_size=1, max_size=5))
    vectors = draw(st.lists(numbers, min_size=chunks, max_size=chunks))
    owners = draw(st.lists(st.integers(0, 12), min_size=chunks, max_size=chunks))
    return np.array(queries, np.float32), np.array(vectors, np.float32), np.array(owners)


@given(searches(), st.integers(1, 15), st.sampled_from([1, 2, 7, 40, 1 << 24]))
@settings(max_examples=200)
def test_ranking_in_blocks_of_any_size_is_the_naive_ranking(search, k, block_scores):
    queries, vectors, owners = search
    documents, scores = rank(queries, vectors, owners, k, block_scores)
    assert documents.dtype == np.int64
    assert scores.dtype == np.float32
    expected = naive(queries, vectors, owners, k)
    got = [list(zip(*row, strict=True)) for row in zip(documents.tolist(), scores.tolist(), strict=True)]
    assert got == expected


def test_ranking_holds_a_block_of_scores_not_all_of_them():
    queries, vectors = np.ones((400, 4), np.float32), np.ones((20_000, 4), np.float32)  # 32 MB of scores
    owners = np.arange(20_000) // 4
    tracemalloc.start()
    documents, _ = rank(queries, vectors, owners, 10, block_scores=1 << 18)  # 1 MiB
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert documents.tolist() == [list(range(10))] * 400
    assert peak < 6 << 20


def test_ranking_nothing_gives_nothing():
    documents, scores = rank(
        np.ones((2, 3), np.float32), np.empty((0, 3), np.float32), np.empty(0, np.int64), 5
    )
    assert documents.shape == scores.shape == (2, 0)
    documents, _ = rank(np.empty((0, 3), np.float32), np.ones((1, 3), np.float32), np.zeros(1, np.int64), 5)
    assert len(documents) == 0


# --- files


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_queries_are_read_in_order_and_integer_ids_become_strings(tmp_path):
    file = parquet(tmp_path / "queries.parquet", id=[3, 1], text=["c", "a"], note=["", ""])
    assert read_queries(file) == (["3", "1"], ["c", "a"])


def test_judgements_are_read_and_the_higher_of_two_counts(tmp_path):
    columns = {"query_id": ["1", "1", "2", "2"], "document_id": [7, 8, 7, 7], "relevance": [4, 0, 1, 3]}
    assert read_qrels(parquet(tmp_path / "qrels.parquet", **columns)) == {
        "1": {"7": 4, "8": 0},
        "2": {"7": 3},
    }


def test_dictionary_and_large_strings_are_strings(tmp_path):
    ids = pa.array(["1", "2"]).dictionary_encode()
    file = parquet(tmp_path / "queries.parquet", id=ids, text=pa.array(["a", "b"], pa.large_string()))
    assert read_queries(file) == (["1", "2"], ["a", "b"])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"id": ["1"], "query": ["a"]}, ["without 'text'", "id, query", "Columns id, text"]),
        ({"id": ["1", None], "text": ["a", "b"]}, ["null in column 'id'", "row 1"]),
        ({"id": ["1", "1"], "text": ["a", "b"]}, ["query id '1' more than once"]),
        ({"id": [1.5], "text": ["a"]}, ["column 'id'", "double"]),
    ],
)
def test_bad_queries_are_usage_errors(tmp_path, columns, words):
    with pytest.raises(UsageError) as caught:
        read_queries(parquet(tmp_path / "queries.parquet", **columns))
    assert all(word in str(caught.value) for word in [*words, "queries.parquet"])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"query": ["1"]}, ["without 'query_id', 'document_id', 'relevance'"]),
        ({"query_id": ["1"], "document_id": ["1"], "relevance": [0.5]}, ["'relevance'", "double"]),
        ({"query_id": ["1"], "document_id": ["1"], "relevance": pa.array([None], pa.int8())}, ["1 nulls"]),
    ],
)
def test_bad_judgements_are_usage_errors(tmp_path, columns, words):
    with pytest.raises(UsageError) as caught:
        read_qrels(parquet(tmp_path / "qrels.parquet", **columns))
    assert all(word in str(caught.value) for word in [*words, "qrels.parquet"])


def test_a_file_that_is_missing_or_not_parquet_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_queries(tmp_path / "queries.parquet")
    (tmp_path / "qrels.parquet").write_text("query_id,document_id,relevance\n")
    with pytest.raises(UsageError, match=r"qrels.*cannot be read"):
        read_qrels(tmp_path / "qrels.parquet")
