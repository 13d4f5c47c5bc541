"""Texts beyond a model's window: tables, graphs and windows, held to their definitions on tiny random models."""

from __future__ import annotations

import copy
import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import transformers
from encoder_models import settings_folder
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import EncoderConfig, load
from pipeline.encoders import check, describe, export, load_encoder, prepare
from pipeline.encoders.exported import read_manifest
from pipeline.encoders.extended import extend, positioned
from pipeline.encoders.folder import read_folder
from pipeline.encoders.long import LongSpec, methods_of, position_rows, sharpness, stretched
from pipeline.encoders.parity import pad
from pipeline.encoders.pieces import cut, join
from pipeline.encoders.positions import read_positions
from pipeline.errors import CollectionMismatch, EncoderError, UsageError
from pipeline.job import make_contract
from pipeline.versions import Contract

WINDOW = 128  # of the tiny BERT
LONGEST = 300
LENGTHS = (1, 7, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, LONGEST)


@pytest.fixture(scope="module")
def table():
    return np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)


def test_a_stretched_table_holds_the_models_own_rows_and_what_lies_between(table):
    longer = stretched(table, 4)

    assert longer.shape == (40, 4)
    np.testing.assert_array_equal(longer[::4], table)
    np.testing.assert_allclose(longer[2], (table[0] + table[1]) / 2, atol=1e-6)
    np.testing.assert_array_equal(longer[36:], np.repeat(table[9:], 4, axis=0))
    np.testing.assert_array_equal(stretched(table, 1), table)


@pytest.mark.parametrize("method", ["gp", "rp", "pi", "pi-dynamic"])
def test_short_texts_have_the_models_own_positions(table, method):
    np.testing.assert_array_equal(position_rows(LongSpec(method, 10, 3), table, 10), table)


def test_positions_of_a_long_text(table):
    def rows(method):
        return position_rows(LongSpec(method, 10, 3), table, 21)

    np.testing.assert_array_equal(rows("gp"), table[np.arange(21) // 3])
    np.testing.assert_array_equal(rows("rp"), table[np.arange(21) % 10])
    np.testing.assert_allclose(rows("pi"), stretched(table, 3)[:21], atol=1e-6)
    np.testing.assert_allclose(
        rows("pi-dynamic")[[0, 20]], table[[0, 9]], atol=1e-6
    )  # all of the table is used


def test_attention_is_sharpened_by_the_texts_length():
    scaled = LongSpec("pi", 512, 8, attention_scaling=True)

    assert sharpness(scaled, 512) == sharpness(scaled, 3) == 1
    assert sharpness(scaled, 4096) == pytest.approx(1.3333, abs=1e-4)
    assert sharpness(LongSpec("pi", 512, 8), 4096) == 1


def rows_of(*lengths):
    generator = np.random.default_rng(sum(lengths))
    return [generator.integers(5, 30000, length, dtype=np.int32) for length in lengths]


@pytest.fixture(scope="module")
def plain(tiny_model, encoder_cache):
    return load_encoder(EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), max_tokens=WINDOW))


@pytest.fixture(scope="module")
def extended(tiny_model, encoder_cache):
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), long="pi", max_tokens=LONGEST)
    return load_encoder(config), config


def test_a_graph_passed_the_gate_beyond_its_window(extended):
    encoder, config = extended
    manifest = read_manifest(prepare(encoder.spec, config))

    assert manifest["spec"]["long"]["factor"] == 3
    assert all(figures["difference"] < 1e-5 for figures in manifest["parity"].values())


def test_a_vector_does_not_depend_on_its_batch(extended):
    encoder, _ = extended
    rows = rows_of(*LENGTHS)
    encoder.runner.batch_tokens = len(LENGTHS) * LONGEST

    together = encoder.encode(rows)

    alone = np.concatenate([encoder.encode([row]) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_what_ran_before_does_not_change_a_vector(extended):
    _, config = extended
    encoder = load_encoder(config)
    (short,) = rows_of(20)
    (first,) = encoder.encode([short])

    encoder.encode(rows_of(LONGEST, LONGEST))

    np.testing.assert_array_equal(encoder.encode([short])[0], first)


@pytest.mark.parametrize("text", ["", "a", "[CLS] [SEP] [PAD] [MASK] [UNK]", "[SEP] " * LONGEST])
def test_texts_of_special_tokens_alone_have_vectors(extended, windowed, text):
    for encoder in (extended[0], windowed):
        ids = encoder.tokenizer.encode(text)[:LONGEST]
        vectors = np.concatenate([encoder.encode([ids]), encoder.encode_queries([text])])

        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_short_texts_keep_their_vectors_to_the_bit(extended, plain):
    for row in rows_of(*(length for length in LENGTHS if length <= WINDOW)):
        np.testing.assert_array_equal(extended[0].encode([row]), plain.encode([row]))


def test_longer_than_the_extended_limit_is_an_error(extended):
    with pytest.raises(EncoderError, match=f"{LONGEST + 1} tokens.*At most {LONGEST}"):
        extended[0].encode(rows_of(LONGEST + 1))


def shape(architecture, offset):
    sizes = {"vocab_size": 30522, "max_position_embeddings": WINDOW + offset, "initializer_range": 0.3}
    if architecture == "DistilBert":
        return sizes | {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return sizes | {"pad_token_id": 1 if offset else 0}


@pytest.fixture(scope="module", params=["Bert", "Roberta", "MPNet", "DistilBert", "Electra"])
def transformer(request):
    """A model with a table of 128 positions, and how many rows of it come before the first."""
    offset = 2 if request.param in ("Roberta", "MPNet") else 0
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(**shape(request.param, offset))
    return getattr(transformers, f"{request.param}Model")(config).eval(), offset


def states_of(model, rows):
    """What a model makes of rows, padded together, as one array of the tokens of each."""
    ids, mask = (torch.from_numpy(array) for array in pad(rows, 1))
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=mask)[0]
    return [state[: len(row)].numpy() for state, row in zip(states, rows, strict=True)]


@pytest.mark.parametrize("scaling", [False, True])
@pytest.mark.parametrize("method", ["gp", "rp", "pi", "pi-dynamic"])
def test_what_is_exported_is_the_model_on_each_texts_own_positions(transformer, method, scaling):
    model, offset = transformer
    long = LongSpec(method, WINDOW, 3, scaling)
    rows = rows_of(*LENGTHS)
    expected = []
    for row in rows:
        with positioned(model, long, offset, len(row)):
            expected += states_of(model, [row])
    unchanged = states_of(model, rows[:4])
    beyond = copy.deepcopy(model)
    places = extend(beyond, long, offset, LONGEST)

    def start(_model, _inputs, given):
        places.start(given["input_ids"], given["attention_mask"])

    beyond.register_forward_pre_hook(start, with_kwargs=True)

    got = states_of(beyond, rows)

    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    for ours, theirs in zip(states_of(beyond, rows[:4]), unchanged, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_reference_leaves_the_model_as_it_was(transformer):
    model, offset = transformer
    (before,) = states_of(model, rows_of(WINDOW))

    with positioned(model, LongSpec("pi", WINDOW, 2, True), offset, 200):
        pass

    np.testing.assert_array_equal(states_of(model, rows_of(WINDOW))[0], before)


@given(size=st.integers(0, 200), room=st.integers(1, 40))
def test_every_token_is_in_one_piece(size, room):
    ids = np.arange(size + 5, dtype=np.int32)
    pieces = cut(ids, (3, 2), room + 5)

    bodies = [piece[3:-2] for piece in pieces]
    np.testing.assert_array_equal(np.concatenate(bodies), ids[3:-2])
    assert all((piece[:3] == ids[:3]).all() and (piece[-2:] == ids[-2:]).all() for piece in pieces)
    assert len(pieces) == max(1, math.ceil(size / room))
    assert max(map(len, bodies)) - min(map(len, bodies)) <= 1


@pytest.fixture(scope="module")
def windowed(tiny_model, encoder_cache):
    return load_encoder(
        EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), long="pcw", max_tokens=LONGEST)
    )


def test_the_mean_of_windows(windowed, plain):
    (text,) = rows_of(LONGEST)
    pieces = cut(text, (1, 1), WINDOW)
    assert len(pieces) == 3

    both = windowed.runner.vectors(pieces, 2 * 32).vectors[:, 32:].mean(axis=0)

    got = windowed.encode([text])[0]
    np.testing.assert_allclose(got, both / np.linalg.norm(both), atol=1e-6)
    swapped = join(np.zeros((2, 2), np.float32), np.array([[1, 3], [3, 1]], np.float32)[::-1], [2], True)
    np.testing.assert_allclose(swapped, [[0.5**0.5, 0.5**0.5]], atol=1e-6)


def test_a_text_in_one_window_keeps_its_vector_to_the_bit(windowed, plain):
    for row in rows_of(3, WINDOW):
        np.testing.assert_array_equal(windowed.encode([row]), plain.encode([row]))


def test_windows_of_many_texts_share_batches(windowed):
    rows = rows_of(*LENGTHS)

    alone = np.concatenate([windowed.encode([row]) for row in rows])

    np.testing.assert_allclose(windowed.encode(rows), alone, atol=1e-6)
    long = "a river " * 120
    query = windowed.encode_queries([long])
    np.testing.assert_allclose(query, windowed.encode([windowed.tokenizer.encode(long)]), atol=1e-6)


def test_each_way_with_long_texts_is_a_version_of_its_own(tmp_path):
    config = EncoderConfig(model=str(settings_folder(tmp_path / "model")), cache=str(tmp_path / "cache"))

    versions = {
        describe(config.model_copy(update=changes)).version
        for changes in (
            {},
            {"long": "truncate"},
            {"long": "pcw", "max_tokens": 1024},
            {"long": "pi", "max_tokens": 1024},
            {"long": "pi", "max_tokens": 1025},
            {"long": "pi", "max_tokens": 1024, "attention_scaling": True},
        )
    }
    assert len(versions) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"long": "pi"}, "max_tokens = 0.*above 512.*for example to 2048"),
        ({"long": "gp", "max_tokens": 512}, "max_tokens = 512.*above 512"),
        ({"long": "rp", "max_tokens": 16 * 512 + 1}, "At most 16 times as many, 8192.*pcw"),
        ({"long": "split", "max_tokens": 513}, "positions for 512.*pi-dynamic"),
        ({"long": "pcw", "max_tokens": 1024, "attention_scaling": True}, "changes the graph"),
    ],
)
def test_what_is_no_extension_is_refused(tmp_path, changes, message):
    config = EncoderConfig(model=str(settings_folder(tmp_path / "model")), cache=str(tmp_path / "cache"))

    with pytest.raises(UsageError, match=message):
        describe(config.model_copy(update=changes))


@pytest.mark.parametrize(
    ("long", "refused"), [("self-extend", True), ("pcw", False), ("ntk", False), ("late-chunking:ntk", False)]
)
def test_what_the_gate_could_not_run_is_refused(tmp_path, long, refused):
    settings = {"model_type": "qwen3", "rope_theta": 1e6, "max_position_embeddings": 40960}
    settings |= {"hidden_size": 8, "vocab_size": 9, "pad_token_id": 0}
    folder = settings_folder(tmp_path / "model", **{"config.json": settings})
    config = EncoderConfig(model=str(folder), cache=str(tmp_path), long=long, max_tokens=50000)

    with pytest.raises(UsageError, match="at most 8192") if refused else nullcontext():
        describe(config)


ANY, LATE = ("split", "error", "truncate", "pcw"), "late-chunking"
MODERNBERT = {  # as its configurations are published
    "model_type": "modernbert",
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "local_attention": 128,
}
TABLE, ANGLES = ("gp", "rp", "pi", "pi-dynamic"), ("ntk", "self-extend")


@pytest.mark.parametrize(
    ("model", "window", "methods"),
    [
        ({"model_type": "bert"}, 512, ANY + TABLE),
        ({"model_type": "distilbert"}, 512, ANY + TABLE),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512, ANY + TABLE),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, 512, ANY + TABLE),
        ({"model_type": "bert", "position_embedding_type": "alibi"}, None, ANY),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, 512, ANY),
        ({"model_type": "t5", "max_position_embeddings": None}, None, ANY),
        ({"model_type": "longformer", "attention_window": [8], "pad_token_id": 1}, 510, ANY),
        (MODERNBERT, 512, ANY + ANGLES),
        ({"model_type": "qwen3", "rope_theta": 1e6}, 512, ANY + ANGLES),
        ({"model_type": "mistral", "rope_theta": 1e4, "sliding_window": 64}, 512, ANY + ANGLES),
        ({"model_type": "mystery"}, 512, ANY),
    ],
)
def test_which_methods_apply_is_read_from_the_model(tmp_path, model, window, methods):
    settings = {"hidden_size": 8, "max_position_embeddings": 512, "vocab_size": 9, "pad_token_id": 0}
    folder = read_folder(settings_folder(tmp_path / "model", **{"config.json": settings | model}))

    positions = read_positions(folder)

    assert positions.window == window
    late = (LATE, *(f"{LATE}:{name}" for name in methods[len(ANY) :]))
    assert methods_of(folder, positions) == (*methods, *late)


@pytest.mark.parametrize("kind", ["mistral", "phi3", "starcoder2"])
def test_a_window_that_all_layers_have_bounds_what_keeps_its_vectors(tmp_path, kind):
    settings = {"model_type": kind, "rope_theta": 1e4, "sliding_window": 64, "hidden_size": 8}
    settings |= {"max_position_embeddings": 512, "vocab_size": 9, "pad_token_id": 0}
    folder = settings_folder(tmp_path / "model", **{"config.json": settings})
    config = EncoderConfig(model=str(folder), cache=str(tmp_path), long="self-extend", max_tokens=200)

    assert describe(config).long == LongSpec("self-extend", 64, 4)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ({"model_type": "t5", "d_model": 8}, "relative positions"),
        ({"model_type": "mystery"}, "positions of a kind not known here"),
        (
            {"model_type": "bert", "position_embedding_type": "relative_key"},
            "positions of a kind not known here",
        ),
    ],
)
def test_a_model_without_such_a_table_says_what_it_allows(tmp_path, model, kind):
    settings = {"hidden_size": 8, "max_position_embeddings": 512, "vocab_size": 9} | model
    folder = settings_folder(tmp_path / "model", **{"config.json": settings})
    config = EncoderConfig(model=str(folder), cache=str(tmp_path / "cache"), long="pi", max_tokens=1024)

    with pytest.raises(UsageError, match=rf"{kind}\).*One of split, error, truncate, pcw"):
        describe(config)
    assert describe(config.model_copy(update={"long": "pcw"})).long == LongSpec("pcw", 512, 2)


def test_an_extended_encoder_in_a_folder_of_its_own(tmp_path, tiny_model, encoder_cache):
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), max_tokens=LONGEST, dims=8)
    config = config.model_copy(update={"long": "pi-dynamic", "attention_scaling": True})

    export(config, tmp_path / "out")

    alone = EncoderConfig(model=str(tmp_path / "out"))
    assert describe(alone).version == describe(config).version
    assert load_encoder(alone).encode(rows_of(LONGEST)).shape == (1, 8)
    found = check(tmp_path / "out", "", EncoderConfig(cache=str(encoder_cache)))
    assert found["passed"]
    assert max(row["tokens"] for row in found["rows"]) == LONGEST
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dims": 8},
        {"layers": 1, "long": "truncate"},
        {"long": "gp", "max_tokens": 600, "attention_scaling": True},
    ],
)
def test_a_contract_names_the_encoder_in_full(tmp_path, settings):
    changes = {"config.json": {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2}}
    changes["config.json"] |= {"max_position_embeddings": 128, "vocab_size": 9, "pad_token_id": 0}
    model = settings_folder(tmp_path / "model", **changes)
    flags = {"encoder.model": str(model), "encoder.cache": str(tmp_path / "cache")}
    made = load(None, flags | {f"encoder.{name}": value for name, value in settings.items()})
    spec = describe(made.encoder)

    held = Contract.read(make_contract(made, spec, "cut").metadata(), "docs")

    assert set(held.settings) == set(settings) - {"max_tokens"}
    assert describe(held.encoder_config(EncoderConfig(cache=made.encoder.cache))).version == spec.version
    other = EncoderConfig(cache=made.encoder.cache, dims=4, long="rp", max_tokens=200)
    assert describe(held.encoder_config(other)).version == spec.version


def test_a_contract_with_settings_of_a_later_version_is_refused():
    said = Contract("v", "m", "fp32", 8, "", "", "c", "", 4, "cosine", "plain", settings={"wings": 2})

    with pytest.raises(CollectionMismatch, match="wings"):
        Contract.read(said.metadata(), "docs")
