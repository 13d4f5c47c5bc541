"""Rotary positions beyond a model's window: slower angles, grouped distances, sharper attention, on tiny models."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers
from encoder_models import settings_folder, tiny, tiny_decoder

from pipeline.config import DecoderConfig, EncoderConfig
from pipeline.encoders import describe, load_encoder
from pipeline.encoders.exported import read_manifest
from pipeline.encoders.long import LongSpec, relative_places
from pipeline.encoders.parity import pad
from pipeline.encoders.prepare import prepare
from pipeline.encoders.rotary import slow_down, slowed
from pipeline.encoders.selfextend import extend_rotary, positioned_rotary, see_all
from pipeline.errors import EncoderError, UsageError

WINDOW = 48
LENGTHS = (1, 7, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 3 * WINDOW)
SHORT = 4  # of these lengths are within the window


def rows_of(*lengths):
    generator = np.random.default_rng(sum(lengths))
    return [generator.integers(5, 300, length, dtype=np.int32) for length in lengths]


def rotary(architecture):
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": WINDOW, "pad_token_id": 0}
    sizes |= {"initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2}
    if architecture in ("Qwen3", "Mistral"):
        sizes |= {"num_key_value_heads": 1, "head_dim": 16}
    if architecture == "Mistral":
        sizes |= {"sliding_window": 16}
    if architecture == "ModernBert":
        sizes |= {"local_attention": 8, "cls_token_id": 1, "sep_token_id": 2}
    config = getattr(transformers, f"{architecture}Config")(**sizes)
    return getattr(transformers, f"{architecture}Model")(config).eval()


def states_of(model, rows):
    """What a model makes of rows, padded together, as one array of the tokens of each."""
    ids, mask = (torch.from_numpy(array) for array in pad(rows, 0))
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=mask)[0]
    return [state[: len(row)].numpy() for state, row in zip(states, rows, strict=True)]


def extended(model, long):
    """The model as it is exported, given what each batch starts with."""
    beyond = copy.deepcopy(model)
    places = extend_rotary(beyond, long, max(LENGTHS))

    def start(_module, _inputs, given):
        places.start(given["input_ids"], given["attention_mask"])

    beyond.register_forward_pre_hook(start, with_kwargs=True)
    return beyond


def test_distances_of_the_papers_example():
    places = relative_places(10, group=2, near=4)

    assert places[0].tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6]
    assert places[4].tolist() == [-4, -3, -2, -1, 0, 1, 2, 3, 4, 4]
    np.testing.assert_array_equal(places, -places.T)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_groups_reach_the_longest_text_and_no_farther_than_the_window(factor):
    long = LongSpec("self-extend", 64, factor)
    group, near = long.groups

    assert (group, near) == (factor + 1, 64 // factor)
    assert relative_places(factor * 64, group, near).max() in (63, 64)


@pytest.mark.parametrize(("group", "near"), [(1, 3), (2, 10), (5, 99)])
def test_groups_of_one_and_near_tokens_alone_are_plain_distances(group, near):
    places = np.arange(10)

    np.testing.assert_array_equal(relative_places(10, group, near), places[None] - places[:, None])


METHODS = [("self-extend", False), ("self-extend", True), ("ntk", True)]


@pytest.mark.parametrize(("method", "scaling"), METHODS)
@pytest.mark.parametrize("architecture", ["ModernBert", "Llama", "Qwen3", "Mistral", "GPTNeoX"])
def test_what_is_exported_turns_every_pair_by_its_own_distance(architecture, method, scaling):
    model, long = rotary(architecture), LongSpec(method, WINDOW, 3, scaling)
    if method == "self-extend":
        see_all(model, 16)
    rows = rows_of(*LENGTHS)
    unchanged = states_of(model, rows)
    expected = []
    for row in rows:
        with positioned_rotary(model, long, len(row)):
            expected += states_of(model, [row])

    got = states_of(extended(model, long), rows)

    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-4)  # numbers of about 1
    for ours, theirs in zip(got[:SHORT], unchanged[:SHORT], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(got[SHORT:], unchanged[SHORT:], strict=True):
        assert np.abs(ours - theirs).max() > 1e-2
    for before, after in zip(unchanged, states_of(model, rows), strict=True):
        np.testing.assert_array_equal(before, after)  # the reference leaves the model as it was


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "GPTNeoX"])
def test_padding_may_be_on_either_side(architecture):
    model = extended(rotary(architecture), LongSpec("self-extend", WINDOW, 3))
    rows = rows_of(7, WINDOW + 5, 2 * WINDOW)
    ids, mask = pad(rows, 0)
    left = [[np.roll(row, -len(own)) for row, own in zip(each, rows, strict=True)] for each in (ids, mask)]
    with torch.inference_mode():
        states = model(
            **{
                name: torch.from_numpy(np.stack(each))
                for name, each in zip(("input_ids", "attention_mask"), left, strict=True)
            }
        )[0]

    for ours, row, theirs in zip(states, rows, states_of(model, rows), strict=True):
        np.testing.assert_allclose(ours[-len(row) :].numpy(), theirs, atol=5e-4)


class Plain(LongSpec):
    """Groups of one."""

    groups = (1, WINDOW // 3)


@pytest.mark.parametrize("architecture", ["ModernBert", "Qwen3"])
def test_groups_of_one_are_the_model_itself(architecture):
    model = rotary(architecture)
    rows = rows_of(*LENGTHS)

    got = states_of(extended(model, Plain("self-extend", WINDOW, 3)), rows)

    for ours, theirs in zip(got, states_of(model, rows), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_causal_models_see_what_is_to_the_left():
    model = extended(rotary("Qwen3"), LongSpec("self-extend", WINDOW, 3))
    (row,) = rows_of(2 * WINDOW)
    other = np.concatenate([row[: WINDOW + 9], row[WINDOW + 9 :][::-1]])

    (before,), (after,) = states_of(model, [row]), states_of(model, [other])

    np.testing.assert_array_equal(before[: WINDOW + 9], after[: WINDOW + 9])
    assert np.abs(before - after).max() > 1e-3


def test_heads_one_after_the_other_are_the_same(monkeypatch):
    model, long = rotary("ModernBert"), LongSpec("self-extend", WINDOW, 3)
    together = states_of(extended(model, long), rows_of(*LENGTHS))
    monkeypatch.setattr("pipeline.encoders.selfextend._SCORES", 1)

    for ours, theirs in zip(states_of(extended(model, long), rows_of(*LENGTHS)), together, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_window_that_all_layers_have_is_switched_off():
    model = rotary("Mistral")
    (row,) = rows_of(40)
    (before,) = states_of(model, [row])

    with pytest.raises(EncoderError, match="see 16 tokens, and 17 positions"):
        see_all(model, 17)
    see_all(model, 16)

    (after,) = states_of(model, [row])
    np.testing.assert_allclose(before[:16], after[:16], atol=1e-5)
    assert np.abs(before[16:] - after[16:]).max() > 1e-3
    alternating = rotary("ModernBert")
    see_all(alternating, WINDOW)
    assert alternating.config.sliding_window


def test_a_model_whose_attention_is_not_understood_is_an_error():
    model = rotary("Qwen3")
    del model.layers[0]

    with pytest.raises(EncoderError, match="attention that is not understood"):
        extend_rotary(model, LongSpec("self-extend", WINDOW, 3), 100)


def behind_the_gate(config):
    """The encoder, held to torch once more, and rows about its window."""
    encoder = load_encoder(config)
    parity = read_manifest(prepare(encoder.spec, config))["parity"]
    assert all(figures["difference"] < 1e-5 for figures in parity.values())
    window = encoder.spec.long.window
    return encoder, rows_of(1, 7, window - 1, window, window + 1, 2 * window, config.max_tokens)


def test_a_graph_with_grouped_distances(tmp_path, encoder_cache):
    folder = tiny(tmp_path / "model", "ModernBert", "mean")
    config = EncoderConfig(model=str(folder), cache=str(encoder_cache), long="self-extend", max_tokens=300)

    encoder, rows = behind_the_gate(config.model_copy(update={"attention_scaling": True}))

    assert encoder.spec.long == LongSpec("self-extend", 130, 3, True)
    alone = np.concatenate([encoder.encode([row]) for row in rows])
    encoder.runner.batch_tokens = 10_000
    np.testing.assert_allclose(encoder.encode(rows), alone, atol=1e-6)


def test_a_language_model_with_grouped_distances(tmp_path, encoder_cache):
    prompt = DecoderConfig(prompt="prompteol", token_prepending=True)
    config = EncoderConfig(model=str(tiny_decoder(tmp_path / "model")), cache=str(encoder_cache))
    config = config.model_copy(update={"decoder": prompt, "max_tokens": 96})
    plain = load_encoder(config)

    encoder, _ = behind_the_gate(config.model_copy(update={"long": "self-extend", "max_tokens": 250}))

    inputs = [encoder.tokenizer.encode("the water of the river runs " * times) for times in (1, 10, 30)]
    assert len(inputs[1]) <= 96 < len(inputs[2])
    alone = np.concatenate([encoder.encode([row]) for row in inputs])
    np.testing.assert_allclose(encoder.encode(inputs), alone, atol=1e-6)
    np.testing.assert_array_equal(alone[:2], np.concatenate([plain.encode([row]) for row in inputs[:2]]))


@pytest.mark.parametrize("architecture", ["Qwen3", "Llama", "ModernBert"])
def test_slower_angles(architecture):
    model = rotary(architecture)

    def frequencies():
        found = {name.rpartition(".")[2]: buffer.clone() for name, buffer in model.named_buffers()}
        return {
            name: buffer
            for name, buffer in found.items()
            if name.endswith("inv_freq") and "original" not in name
        }

    before = frequencies()

    slow_down(model, 2)

    for name, after in frequencies().items():
        ratio = before[name] / after
        if name.startswith("sliding"):  # layers that see near tokens alone
            assert torch.equal(after, before[name])
            continue
        assert ratio[0] == 1
        width = 2 * len(ratio)
        assert float(ratio[-1]) == pytest.approx(3 ** ((width - 2) / width), rel=1e-5)
    with pytest.raises(EncoderError, match="not those of its base"):
        slow_down(model, 2)


def test_angles_that_near_sighted_layers_share_are_not_slowed():
    config = transformers.Qwen2Config(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, use_sliding_window=True, sliding_window=8, max_window_layers=1,
    )  # fmt: skip
    model = transformers.Qwen2Model(config).eval()

    with pytest.raises(EncoderError, match="share the others' angles"):
        slow_down(model, 2)


def test_slower_angles_are_those_of_another_base():
    by_config = rotary("Qwen3")
    config = copy.deepcopy(by_config.config)
    config.rope_parameters["rope_theta"] *= slowed(4)
    expected = transformers.Qwen3Model(config).eval()
    expected.load_state_dict(by_config.state_dict())

    slow_down(by_config, 4)

    assert [slowed(factor) for factor in (2, 4, 8)] == [3, 5, 10]
    for ours, theirs in zip(
        states_of(by_config, rows_of(5, 100)), states_of(expected, rows_of(5, 100)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("architecture", ["Qwen3", "Llama", "ModernBert"])
def test_with_slower_angles_distances_alone_count(architecture):
    model = rotary(architecture)
    slow_down(model, 4)
    (row,) = rows_of(100)
    ids, places = torch.from_numpy(row[None].astype(np.int64)), torch.arange(100)[None]

    with torch.inference_mode():
        here, there = (model(input_ids=ids, position_ids=places + shift)[0] for shift in (0, 37))

    np.testing.assert_allclose(here, there, atol=2e-4)


def test_an_encoder_with_slower_angles_is_the_stock_model_with_another_base(tmp_path, encoder_cache):
    folder = tiny(tmp_path / "model", "Qwen3", "mean")
    plain = EncoderConfig(model=str(folder), cache=str(encoder_cache), max_tokens=130)
    slower = transformers.AutoConfig.from_pretrained(folder)
    slower.rope_parameters["rope_theta"] *= 5  # for texts of four windows
    stock = transformers.AutoModel.from_pretrained(folder, config=slower).eval()
    rows = rows_of(5, 130, 300)
    means = np.stack([states.mean(axis=0) for states in states_of(stock, rows)])

    got = load_encoder(plain.model_copy(update={"long": "ntk", "max_tokens": 520})).encode(rows)

    np.testing.assert_allclose(got, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-5)
    assert np.abs(got[:2] - load_encoder(plain).encode(rows[:2])).max() > 1e-3


def test_a_model_with_rotary_positions_says_what_it_allows(tmp_path):
    settings = {"model_type": "modernbert", "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
    settings |= {"local_attention": 128, "hidden_size": 8, "max_position_embeddings": 512, "vocab_size": 9}
    folder = settings_folder(tmp_path / "model", **{"config.json": settings})
    config = EncoderConfig(model=str(folder), cache=str(tmp_path / "cache"), long="pi", max_tokens=1024)

    allowed = "split, error, truncate, pcw, ntk, self-extend, late-chunking, late-chunking:ntk"
    with pytest.raises(UsageError, match=rf"rotary positions, local attention\).*One of {allowed}, "):
        describe(config)
    with pytest.raises(UsageError, match="At most 8 times as many, 4096"):
        describe(config.model_copy(update={"long": "ntk", "max_tokens": 4097}))
