"""Likeness of sentences: Spearman by hand, intervals, and what is said of files that cannot be measured."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.config import EncoderConfig
from pipeline.encoders import load_plain_encoder
from pipeline.errors import EncoderError, UsageError
from pipeline.evaluation.sts import (
    Pairs,
    cosines_of,
    embed_sentences,
    evaluate_sts,
    read_pairs,
    spearman,
    spearman_resampled,
)

ROWS = {
    "sentence1": ["a cat sleeps", "a cat sleeps", "rain falls on the town", "two men play chess"],
    "sentence2": ["a cat is asleep", "shares fell", "it rains", "a woman sings"],
    "score": [4.8, 0.0, 4.0, 0.5],
}


def write(file, **columns):
    pq.write_table(pa.table(ROWS | columns), file)
    return file


# --- the correlation


def test_equal_values_share_the_mean_of_their_ranks():
    # ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5
    found = spearman(np.array([0.1, 0.5, 0.5, 0.9]), np.array([1.0, 3.0, 2.0, 4.0]))

    assert found == pytest.approx(4.5 / np.sqrt(4.5 * 5))


values = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=30)


@given(st.data(), values)
def test_only_the_order_counts_and_turning_it_turns_the_sign(data, ours):
    theirs = data.draw(st.lists(st.integers(-5, 5).map(float), min_size=len(ours), max_size=len(ours)))
    a, b = np.array(ours), np.array(theirs)

    found = spearman(a, b)

    assert -1 - 1e-12 <= found <= 1 + 1e-12
    assert spearman(np.exp(a), 3 * b + 1) == pytest.approx(found)
    assert spearman(-a, b) == pytest.approx(-found)
    assert spearman(b, a) == pytest.approx(found)
    assert spearman(a, a) == (pytest.approx(1) if len(set(ours)) > 1 else 0)


def test_intervals_come_from_pairs_drawn_again_and_the_draws_of_two_encoders_are_the_same():
    generator = np.random.default_rng(3)
    scores = generator.normal(size=400)
    good, bad = scores + generator.normal(size=400), scores + 2 * generator.normal(size=400)

    drawn = spearman_resampled(good, scores)

    low, high = np.quantile(drawn, (0.025, 0.975))
    assert low < spearman(good, scores) < high
    assert 0.05 < high - low < 0.2  # about 4 (1 − ρ²)/√n
    assert np.array_equal(drawn, spearman_resampled(good * 2, scores))
    assert np.quantile(drawn - spearman_resampled(bad, scores), 0.025) > 0


# --- files


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"score": ["high", "low", "high", "low"]}, "column 'score' of .* of type string with 0 nulls"),
        ({"score": [1.0, None, 2.0, 3.0]}, "with 1 nulls"),
        ({"score": [1.0, float("nan"), 2.0, 3.0]}, "score nan in .*, row 1"),
        ({"score": [2.0, 2.0, 2.0, 2.0]}, "4 pairs in .*, all with the score 2"),
        ({"sentence2": ["a", None, "b", "c"]}, "null in column 'sentence2' of .*, row 1"),
        ({"sentence1": ["a", "b", " ", "c"]}, "an empty sentence1 in .*, row 2"),
    ],
)
def test_rows_that_cannot_be_measured_are_named(tmp_path, columns, said):
    with pytest.raises(UsageError, match=said) as caught:
        read_pairs(write(tmp_path / "pairs.parquet", **columns))
    assert caught.value.need
    assert caught.value.do


def test_files_that_hold_no_pairs_are_refused(tmp_path):
    file = tmp_path / "pairs.parquet"
    pq.write_table(pa.table(ROWS).rename_columns(["sentence1", "text", "score"]), file)
    with pytest.raises(UsageError, match="without 'sentence2'; its columns are sentence1, text, score"):
        read_pairs(file)
    pq.write_table(pa.table(ROWS).slice(0, 0), file)
    with pytest.raises(UsageError, match="no row in"):
        read_pairs(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_pairs(tmp_path / "none.parquet")


def test_whole_numbers_are_scores_too_and_equal_texts_are_held_once(tmp_path):
    pairs = read_pairs(write(tmp_path / "pairs.parquet", score=[3, 0, 2, 1]))

    assert pairs.scores.tolist() == [3, 0, 2, 1]
    assert len(pairs.texts) == 7
    assert [pairs.texts[n] for n in pairs.first] == ROWS["sentence1"]
    assert [pairs.texts[n] for n in pairs.second] == ROWS["sentence2"]


# --- an encoder


def test_cosines_do_not_depend_on_lengths_and_a_vector_without_direction_is_refused():
    pairs = Pairs(["a", "b", "c"], np.array([0, 0]), np.array([1, 2]), np.array([1.0, 2.0]))
    vectors = np.array([[3, 0], [1, 1], [0, 5]], np.float32)

    assert cosines_of(vectors, pairs) == pytest.approx([0.5**0.5, 0])
    with pytest.raises(EncoderError, match=r"a vector of length 0\.0 for 'c'"):
        cosines_of(vectors * [[1], [1], [0]], pairs)


def test_both_sentences_are_documents_unless_told_otherwise(tmp_path, tiny_model, encoder_cache):
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), query_prompt="query: ")
    encoder = load_plain_encoder(config)
    texts = ["a cat sleeps", "shares fell " * 100]

    vectors, cut = embed_sentences(texts, encoder)
    asked, cut_queries = embed_sentences(texts, encoder, "query")

    assert cut.tolist() == cut_queries.tolist() == [False, True]
    assert np.array_equal(asked, encoder.encode_queries(texts))
    assert np.array_equal(vectors[:1], encoder.encode([encoder.tokenizer.encode(texts[0])]))
    assert not np.allclose(asked[0], vectors[0], atol=1e-3)
    encoder.close()


def test_the_command_counts_what_was_cut(tmp_path, tiny_model, encoder_cache):
    long = ["rain " * 500, "a cat sleeps", "rain " * 500, "two men play chess"]
    file = write(tmp_path / "pairs.parquet", sentence1=long)
    flags = ["--pairs", str(file), "--encoder", str(tiny_model), "--set", f"encoder.cache={encoder_cache}"]

    done = CliRunner().invoke(app, ["evaluate", "sts", *flags, "--json"])

    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache))
    assert found == evaluate_sts(file, config)
    assert (found["pairs"], found["truncated"], found["side"]) == (4, 2, "document")
    low, high = found["spearman_interval"]
    assert -1 <= low <= found["spearman"] <= high <= 1
    assert -1 <= found["pearson"] <= 1
