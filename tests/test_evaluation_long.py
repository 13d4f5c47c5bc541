"""Passkeys and needles: texts as LongEmbed makes them, and what is said about who finds them."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoder_models import tiny
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.config import ChunkingConfig, EncoderConfig, Settings
from pipeline.encoders import describe, export
from pipeline.errors import UsageError
from pipeline.evaluation.bm25 import rank_by_words
from pipeline.evaluation.facts import FACTS
from pipeline.evaluation.long import evaluate_long, read_lengths, score, shorten
from pipeline.evaluation.needles import make, read_prose


@pytest.fixture(scope="module")
def prose():
    return read_prose(None)


def test_prose_of_our_own_is_long_enough_for_32k_tokens_and_never_repeats_itself(prose):
    assert sum(len(sentence.split()) for sentence in prose) > 24_600
    assert len(set(prose)) == len(prose)
    assert read_prose(None) == prose


@pytest.mark.parametrize(("length", "characters"), [(256, 878), (512, 1778), (1024, 3600)])
def test_passkeys_are_as_long_as_the_released_ones(prose, length, characters):
    documents = make("passkey", length, 0, prose).documents

    assert np.mean([len(text) for text in documents]) == pytest.approx(characters, rel=0.02)


@pytest.mark.parametrize("task", ["passkey", "needle"])
def test_one_document_answers_each_query(task, prose):
    haystack = make(task, 512, 3, prose)

    assert len(haystack.documents) == len(set(haystack.documents)) == 100
    assert len(haystack.queries) == len(set(haystack.queries)) == 50
    for number, query in enumerate(haystack.queries):
        asked = re.sub(r"\?$", "", query.rsplit(" for " if task == "passkey" else " ", 1)[-1])
        assert [n for n, text in enumerate(haystack.documents) if asked.lower() in text.lower()] == [number]
    sizes = [len(text.split()) for text in haystack.documents]
    assert 384 - 24 < min(sizes) <= max(sizes) <= 384
    assert make(task, 512, 3, prose) == haystack
    assert make(task, 512, 4, prose).documents != haystack.documents


@pytest.mark.parametrize("length", [256, 512, 1024, 2048])
@pytest.mark.parametrize("task", ["passkey", "needle"])
def test_words_alone_find_nearly_all_of_them(task, length, prose):
    haystack = make(task, length, 0, prose)
    numbers = [str(number) for number in range(100)]

    found = rank_by_words(haystack.documents, numbers, haystack.queries, 10)

    assert score([[int(n) for n in row] for row in found]).accuracy.mean() >= 0.95


@pytest.mark.parametrize("length", [512, 1024, 2048])
@pytest.mark.parametrize("task", ["passkey", "needle"])
def test_a_share_of_a_document_holds_its_line_as_often(task, length, prose):
    documents = [text for seed in range(5) for text in make(task, length, seed, prose).documents]
    lines = re.compile("|".join(re.escape(fact) for fact, _ in FACTS) if task == "needle" else "\n.*\n|^.*\n")

    seen = [lines.search(text).end() <= 0.25 * len(text) for text in documents]

    assert abs(np.mean(seen) - 0.25) <= 2 * (0.25 * 0.75 / len(seen)) ** 0.5


def test_facts_are_a_hundred_and_their_questions_differ():
    assert len(FACTS) == len({question for _, question in FACTS}) == 100


def test_prose_of_a_file_knows_none_of_the_facts(tmp_path):
    file = tmp_path / "prose.txt"
    file.write_text("One plain sentence is here. We saw Iceland from the ship. Another one goes on and on.\n")

    assert read_prose(file) == ["One plain sentence is here.", "Another one goes on and on."]
    with pytest.raises(UsageError, match="11 words of prose for documents of 384"):
        make("needle", 512, 0, read_prose(file))
    with pytest.raises(UsageError, match=r"--haystack .*nowhere cannot be read"):
        read_prose(tmp_path / "nowhere")


@pytest.mark.parametrize("column", [[1, 2], [[1.5], [2.5]], [b"\xff", b"\xfe"]])
def test_prose_is_text(tmp_path, column):
    file = tmp_path / "prose.parquet"
    pq.write_table(pa.table({"text": column}), file)

    with pytest.raises(UsageError, match=r"column 'text' of .*prose.parquet is of type .*Convert the column"):
        read_prose(file)


def test_prose_of_a_column_may_have_nulls(tmp_path):
    file = tmp_path / "prose.parquet"
    pq.write_table(pa.table({"text": ["One plain sentence is here.", None, "Another one goes on."]}), file)

    assert read_prose(file) == ["One plain sentence is here.", "Another one goes on."]


def test_scores_and_hubs():
    scores = score([[0, 1], [0, 1], [0, 5], []])

    assert scores.accuracy.tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(scores.ndcg, [1, 1 / np.log2(3), 0, 0])
    assert scores.hub == 3


def test_a_shortened_input_keeps_its_special_tokens():
    ids = np.arange(10, dtype=np.int32)

    assert shorten(ids, 1, 10) is ids
    assert shorten(ids, 1, 4).tolist() == [0, 1, 2, 9]


@pytest.mark.parametrize("text", ["", "a", "512,", "64"])
def test_lengths_are_numbers(text):
    with pytest.raises(UsageError, match="--lengths"):
        read_lengths(text)


def test_a_length_that_is_named_twice_is_measured_once():
    assert read_lengths("512,128,512") == [512, 128]


def test_an_encoder_is_held_against_truncation_and_words(tiny_model, encoder_cache):
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), long="pcw", max_tokens=200)

    found = evaluate_long(Settings(encoder=config), [128, 256], 1)

    assert [row["method"] for row in found["rows"]] == 4 * [
        "bm25",
        "truncation",
        "mean of windows",
        "best window",
        "pcw",
    ]
    assert {row["task"] for row in found["rows"]} == {"passkey", "needle"}
    by_words = found["rows"][0]
    assert by_words["accuracy"] == 1
    low, mean, high = (by_words["ndcg@10_gain"][n] for n in (1, 0, 2))
    assert 0.3 < low <= mean <= high <= 1
    assert found["rows"][1]["ndcg@10_gain"] is None
    assert found["plain_baselines"]
    truncated = {(row["length"], row["method"]): row["truncated"] for row in found["rows"]}
    assert truncated[128, "pcw"] == truncated[128, "truncation"] == 0
    assert truncated[256, "pcw"] == truncated[256, "truncation"] == 100
    assert truncated[256, "bm25"] == truncated[256, "best window"] == 0
    assert json.loads(json.dumps(found)) == found


def test_slowed_angles_are_held_against_the_plain_model(tmp_path, encoder_cache):
    model = tiny(tmp_path / "model", "ModernBert", "mean")
    plain = EncoderConfig(model=str(model), cache=str(encoder_cache), max_tokens=130)
    slowed = plain.model_copy(update={"long": "ntk", "max_tokens": 260})

    def baselines(config):
        found = evaluate_long(Settings(encoder=config), [128], 1)
        return found["plain_baselines"], [row for row in found["rows"] if row["method"] != "ntk"]

    expected = baselines(plain)

    assert baselines(slowed) == expected
    export(slowed, tmp_path / "out")
    said, weaker = baselines(EncoderConfig(model=str(tmp_path / "out"), cache=str(encoder_cache)))
    assert not said
    assert weaker != expected[1]


def test_late_chunking_is_held_against_the_same_chunks_alone(tiny_model, encoder_cache):
    plain = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache))
    late = plain.model_copy(update={"long": "late-chunking"})

    found = evaluate_long(Settings(encoder=late, chunking=ChunkingConfig(max_tokens=40)), [128], 1)

    expected = evaluate_long(Settings(encoder=plain), [128], 1)["rows"]
    ours = ("best chunk", "late-chunking")
    for row, plain_row in zip((r for r in found["rows"] if r["method"] not in ours), expected, strict=True):
        assert (row["task"], row["method"]) == (plain_row["task"], plain_row["method"])
        # two documents that nearly tie may change places
        assert row["ndcg@10"] == pytest.approx(plain_row["ndcg@10"], abs=0.005)
    alone, together = ([row for row in found["rows"] if row["method"] == method] for method in ours)
    assert [row["task"] for row in alone] == [row["task"] for row in together] == ["passkey", "needle"]
    assert [row["ndcg@10"] for row in alone] != [row["ndcg@10"] for row in together]


def test_late_chunking_is_to_be_told_how_long_chunks_are(tiny_model, encoder_cache):
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), long="late-chunking")

    with pytest.raises(UsageError, match=r"Set chunking\.max_tokens"):
        evaluate_long(Settings(encoder=config), [128], 1)


@pytest.mark.parametrize("beyond", [0, 20])
def test_a_prompt_that_leaves_no_room_in_a_window_is_refused(tiny_model, encoder_cache, beyond):
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), long="pi", max_tokens=200)
    window = describe(config).long.window
    prompt = "river " * (window - 2 + beyond)

    prompted = config.model_copy(update={"document_prompt": prompt})
    with pytest.raises(UsageError, match=f"a row of the model takes {window}"):
        evaluate_long(Settings(encoder=prompted), [128], 1)


def test_the_command(tiny_model, encoder_cache):
    flags = [
        "--encoder",
        str(tiny_model),
        "--set",
        f"encoder.cache={encoder_cache}",
        "--seeds",
        "1",
        "--lengths",
        "128",
    ]

    done = CliRunner().invoke(app, ["evaluate", "long", *flags, "--json"])

    assert done.exit_code == 0, done.output
    assert {row["length"] for row in json.loads(done.stdout)["rows"]} == {128}
