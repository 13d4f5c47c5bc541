"""The tuner of language models: what it chooses on one half of the pairs, and that the other half had no say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import encoder_models
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.config import DecoderConfig, EncoderConfig
from pipeline.encoders.decoders.reference import vectors
from pipeline.encoders.decoders.sweep import Checkpoint
from pipeline.errors import UsageError
from pipeline.evaluation.sts import Pairs, read_pairs
from pipeline.evaluation.tuning import best_layer, exits_of, halves, tune

RIVERS = ["river", "hill", "sea", "town", "mill", "stone", "boat", "bridge", "fish", "tree", "bank", "ford"]


def pairs_file(file: Path, count: int = 24) -> Path:
    firsts = [" ".join(RIVERS[n % 7 : n % 7 + 5]) for n in range(count)]
    seconds = [" ".join(RIVERS[n % 5 : n % 5 + 4]) + f" {n}" for n in range(count)]
    scores = [float(n * 7 % 11) for n in range(count)]
    pq.write_table(pa.table({"sentence1": firsts, "sentence2": seconds, "score": scores}), file)
    return file


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory):
    return encoder_models.tiny_decoder(tmp_path_factory.mktemp("decoder"))


def test_the_layer_whose_cosines_go_with_the_scores_is_chosen():
    generator = np.random.default_rng(0)
    pairs = Pairs([str(n) for n in range(60)], np.arange(30), np.arange(30, 60), np.linspace(0, 5, 30))
    found = generator.standard_normal((7, 60, 4)).astype(np.float32)
    angles = np.linspace(np.pi / 2, 0, 30)
    for layer in (1, 4):  # the first is in the lower half
        found[layer, :30] = [1, 0, 0, 0]
        found[layer, 30:] = np.stack([np.cos(angles), np.sin(angles), 0 * angles, 0 * angles], axis=1)

    chosen = best_layer(DecoderConfig(prompt="prompteol"), pairs, found, 6)
    later = best_layer(DecoderConfig(prompt="prompteol", token_prepending=True, exit=5), pairs, found, 6)

    assert (chosen.how.out_layer, chosen.spearman) == (4, pytest.approx(1))
    assert later.how.out_layer in (5, 6)


def test_halves_share_no_pair_and_are_the_same_each_time(tmp_path):
    file = pairs_file(tmp_path / "pairs.parquet", 41)
    pairs = read_pairs(file)

    ours, theirs = halves(pairs, 0, file)
    again, _ = halves(pairs, 0, file)

    said = [
        {(half.texts[a], half.texts[b]) for a, b in zip(half.first, half.second, strict=True)}
        for half in (ours, theirs)
    ]
    assert not said[0] & said[1]
    assert (len(ours.scores), len(theirs.scores)) == (21, 20)
    assert again.texts == ours.texts
    assert [len(half.scores) for half in halves(pairs, 30, file)] == [15, 15]
    with pytest.raises(UsageError, match="At least 20"):
        halves(pairs, 8, file)
    one_differs = replace(pairs, scores=np.eye(41)[0])
    with pytest.raises(UsageError, match="all with the score 0"):
        halves(one_differs, 0, file)


def test_one_pass_gives_what_each_layers_encoder_would(decoder_folder):
    model = Checkpoint.open(EncoderConfig(model=str(decoder_folder)))
    how = DecoderConfig(prompt="prompteol", token_prepending=True, exit=2)
    texts = ["the river", "past towns and mills to the sea"]

    swept = model.vectors(how, texts)

    for out in (2, 4):
        wording, decoder, rows = model.rows(how.model_copy(update={"out_layer": out}), texts)
        ids = [np.array([row], dtype=np.int64) for row in rows]
        for number, row in enumerate(ids):
            (alone,) = vectors(model.transformer, decoder, wording.slot, row, np.ones_like(row))
            unit = swept[out, number] / np.linalg.norm(swept[out, number])
            np.testing.assert_allclose(unit, alone, atol=1e-5)
    assert np.abs(model.vectors(DecoderConfig(prompt="metaeol"), texts)).max() > 0


def test_tune_tells_the_score_of_pairs_that_did_not_choose(decoder_folder, tmp_path):
    file = pairs_file(tmp_path / "pairs.parquet")
    words = ["encoders", "tune", str(decoder_folder), "--pairs", str(file), "--json"]
    prompts = ["--prompt", "prompteol", "--prompt", "{text}, in <PST> short:"]

    said = CliRunner().invoke(app, [*words, *prompts[:2]])
    refused = CliRunner().invoke(app, [*words, *prompts[2:]]).exception

    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert found["pairs"] == {"chosen_on": 12, "held_out": 12}
    assert found["chosen"]["prompt"] == "prompteol"
    assert found["held_out"] in (found["plain"]["held_out"], found["prepended"]["held_out"])
    assert found["spearman"] == max(trial["spearman"] for trial in found["trials"])
    gain, low, high = found["gain"]
    assert low <= gain <= high
    assert isinstance(refused, UsageError)
    assert "<PST> once, before {text}" in str(refused)


def test_a_prompt_without_a_slot_is_tried_without_prepending(decoder_folder, tmp_path):
    file = pairs_file(tmp_path / "pairs.parquet")
    words = ["encoders", "tune", str(decoder_folder), "--pairs", str(file), "--prompt", "{text} is:"]

    said = CliRunner().invoke(app, words)
    found = tune(EncoderConfig(model=str(decoder_folder)), file, ["{text} is:"])

    assert said.exit_code == 0, said.output
    assert "gain" not in said.stdout
    assert [found["prepended"], found["gain"], len(found["trials"])] == [None, None, 1]
    assert found["held_out"] == found["plain"]["held_out"]


def test_texts_stand_behind_the_models_own_prompt(decoder_folder, tmp_path):
    folder = tmp_path / "prompted"
    shutil.copytree(decoder_folder, folder)
    own = {"prompts": {"document": "towns and mills "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(own))
    how = DecoderConfig(prompt="{text} means:")

    _, _, prompted = Checkpoint.open(EncoderConfig(model=str(folder))).rows(how, ["river"])
    _, _, said = Checkpoint.open(EncoderConfig(model=str(decoder_folder))).rows(
        how, ["towns and mills river"]
    )

    np.testing.assert_array_equal(prompted[0], said[0])


@pytest.mark.parametrize(("max_tokens", "most"), [(0, 96), (40, 40)])
def test_texts_are_cut_where_the_encoder_would_cut_them(decoder_folder, max_tokens, most):
    model = Checkpoint.open(EncoderConfig(model=str(decoder_folder), max_tokens=max_tokens))

    wording, _, rows = model.rows(DecoderConfig(prompt="{text} means:"), ["river " * 200, "river"])

    (_, after) = wording.rows[0]
    assert len(rows[0]) == most > len(rows[1])
    assert all(tuple(row[len(row) - len(after) :]) == after for row in rows)


def test_what_is_held_out_has_no_say(decoder_folder, tmp_path):
    file = pairs_file(tmp_path / "pairs.parquet")
    table = pq.read_table(file)
    order = np.random.default_rng(0).permutation(24)
    scores = table["score"].to_numpy().copy()
    scores[order[1::2]] = scores[order[1::2]][::-1]
    other = tmp_path / "other.parquet"
    pq.write_table(table.set_column(2, "score", pa.array(scores)), other)
    config = EncoderConfig(model=str(decoder_folder))

    one, two = (tune(config, each, ["prompteol"]) for each in (file, other))

    assert one["trials"] == two["trials"]
    assert one["held_out"] != two["held_out"]


def test_what_is_not_tuned_stays_as_it_is_set(decoder_folder, tmp_path):
    file = pairs_file(tmp_path / "pairs.parquet")
    asked = {"start": 0, "pooling": "mean", "attention": "bidirectional"}
    config = EncoderConfig(model=str(decoder_folder), decoder=DecoderConfig(**asked))

    found = tune(config, file, ["prompteol"])

    assert {(each["pooling"], each["attention"]) for each in found["trials"]} == {("mean", "bidirectional")}
    assert [each.get("start") for each in found["trials"]] == [None, 0]


@pytest.mark.parametrize(("start", "exits"), [(0, [2]), (2, [3]), (3, [4])])
def test_every_exit_is_behind_the_start(decoder_folder, tmp_path, start, exits):
    file = pairs_file(tmp_path / "pairs.parquet")
    config = EncoderConfig(model=str(decoder_folder), decoder=DecoderConfig(start=start))

    found = tune(config, file, ["prompteol"])

    assert [each["exit"] for each in found["trials"] if "exit" in each] == exits


def test_exits_of_a_deep_model():
    assert exits_of(40, 1) == [2, 4, 8, 20]
    assert exits_of(40, 6) == [7, 8, 20]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"long": "self-extend", "max_tokens": 200}, "long = 'self-extend' while"),
        (
            {"long": "ntk", "max_tokens": 200, "attention_scaling": True, "dims": 8},
            "'ntk' and encoder.attention_scaling = True and encoder.dims = 8 while",
        ),
    ],
)
def test_settings_that_are_not_tried_are_refused_before_anything_is_loaded(changes, said):
    config = EncoderConfig(model="nowhere", **changes)

    with pytest.raises(UsageError, match=said):
        tune(config, Path("nowhere.parquet"), ["prompteol"])


def test_a_folder_that_is_taken_is_refused_before_the_tuning(decoder_folder, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    monkeypatch.setattr("pipeline.cli.decoding.tune", lambda *_: pytest.fail("it tuned"))

    taken = ["--out", str(tmp_path / "out")]
    words = ["encoders", "tune", str(decoder_folder), "--pairs", "any.parquet", *taken]

    with pytest.raises(UsageError, match="not empty"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_a_prompt_longer_than_the_models_window_is_no_prompt_to_tune(decoder_folder, tmp_path):
    file = pairs_file(tmp_path / "pairs.parquet")
    with pytest.raises(UsageError, match="and a row of the model takes 96"):
        tune(EncoderConfig(model=str(decoder_folder)), file, ["word " * 100 + "<PST> {text}"])
