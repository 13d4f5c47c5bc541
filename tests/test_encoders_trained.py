"""Poolings with weights of their own: latent attention and multi-layer pooling, held to their papers' formulas."""

from __future__ import annotations

import json
import math

import encoder_models
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file

from pipeline.config import DecoderConfig, EncoderConfig
from pipeline.encoders import check, describe, export, load_encoder
from pipeline.encoders.decoders.reading import read_model
from pipeline.encoders.decoders.reference import Weights
from pipeline.encoders.decoders.trained import find_trained
from pipeline.encoders.decoders.wording import LeftOut, leave_out
from pipeline.encoders.exported import GRAPH
from pipeline.encoders.folder import Head
from pipeline.encoders.head import OUTPUT, append_head
from pipeline.encoders.parity import pad
from pipeline.encoders.runtime import open_session
from pipeline.errors import EncoderError, UsageError
from pipeline.tokens import Tokenizer

TEXTS = ["a", "rivers and hills", "the water of the river runs from the hills to the sea, and so on and on"]
ASKED = "Instruct: find what answers the question\nQuery: "


# --- the formulas, in float64, a text, a head and a token at a time


def normed(x, weight, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def attended(queries, context, t, heads):
    """softmax(QKᵀ / √d) V of each head, side by side, and the output's projection."""
    q = queries @ t["cross_attend_blocks.0.fn.to_q.weight"].T
    k, v = np.split(context @ t["cross_attend_blocks.0.fn.to_kv.weight"].T, 2, axis=1)
    found = []
    for own_q, own_k, own_v in zip(*(np.split(each, heads, axis=1) for each in (q, k, v)), strict=True):
        weights = np.exp(own_q @ own_k.T / math.sqrt(own_q.shape[1]))
        found.append(weights / weights.sum(axis=1, keepdims=True) @ own_v)
    return np.concatenate(found, axis=1) @ t["cross_attend_blocks.0.fn.to_out.weight"].T


def fed_forward(x, t):
    at = "cross_attend_blocks.1"
    x = normed(x, t[f"{at}.norm.weight"], t[f"{at}.norm.bias"])
    value, gate = np.split(x @ t[f"{at}.fn.net.0.weight"].T + t[f"{at}.fn.net.0.bias"], 2, axis=1)
    gelu = gate / 2 * (1 + np.vectorize(math.erf)(gate / math.sqrt(2)))
    return (value * gelu) @ t[f"{at}.fn.net.2.weight"].T + t[f"{at}.fn.net.2.bias"]


def both_normed(states, t):
    at = "cross_attend_blocks.0"
    return (
        normed(states, t[f"{at}.norm.weight"], t[f"{at}.norm.bias"]),
        normed(t["latents"], t[f"{at}.norm_context.weight"], t[f"{at}.norm_context.bias"]),
    )


def nv_embed(states, t, heads, first):
    """One text's token states; the `first` tokens are an instruction's."""
    queries, context = both_normed(states, t)
    states = attended(queries, context, t, heads) + states
    states = fed_forward(states, t) + states
    return unit(states[first:].mean(axis=0))


def multi_layers(pooled, t, heads=32):
    """What each layer's states were pooled to."""
    layers, queries = both_normed(pooled + t["pos_emb.weight"][: len(pooled)], t)
    latents = attended(queries, layers, t, heads) + t["latents"]
    return unit((fed_forward(latents, t) + latents).mean(axis=0))


def unit(vector):
    return vector / np.linalg.norm(vector)


def tensors_of(file, prefix=""):
    stored = load_file(file)
    return {name.removeprefix(prefix): value.double().numpy() for name, value in stored.items()}


def every_layer(transformer, row, bidirectional):
    """float64[layers, tokens, hidden] of one row without padding."""
    seen = torch.zeros((1, 1, len(row), len(row))) if bidirectional else None
    ids = torch.tensor(row.astype(np.int64))[None]
    with torch.inference_mode():
        said = transformer(input_ids=ids, attention_mask=seen, output_hidden_states=True, use_cache=False)
    return np.stack([states[0].double().numpy() for states in said.hidden_states[1:]])


# --- NV-Embed


@pytest.fixture(scope="module")
def nvembed(tmp_path_factory):
    return encoder_models.tiny_nvembed(tmp_path_factory.mktemp("nvembed"))


@pytest.fixture(scope="module")
def nvembed_exported(nvembed, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "encoder"
    export(EncoderConfig(model=str(nvembed), query_prompt=ASKED), out)
    return out


@pytest.fixture(scope="module")
def nvembed_vector(nvembed):
    """The vector of a row, of which the first tokens are an instruction's, by a Mistral built by hand."""
    text = json.loads((nvembed / "config.json").read_text())["text_config"]
    config = {**text, "model_type": "mistral", "sliding_window": None}
    transformer = transformers.MistralModel(transformers.MistralConfig.from_dict(config)).eval()
    stored = load_file(nvembed / "model-00001-of-00002.safetensors")
    own = {name.removeprefix("embedding_model."): value.float() for name, value in stored.items()}
    transformer.load_state_dict(own)
    t = tensors_of(nvembed / "model-00002-of-00002.safetensors", "latent_attention_model.")
    return lambda row, first=0: nv_embed(every_layer(transformer, row, bidirectional=True)[-1], t, 2, first)


def test_an_nvembed_checkpoint_is_taken_as_it_is_saved(nvembed, nvembed_exported, nvembed_vector):
    encoder = load_encoder(EncoderConfig(model=str(nvembed_exported)))
    rows = [encoder.tokenizer.encode(text) for text in TEXTS]
    expected = [nvembed_vector(row) for row in rows]
    ids, mask = pad(rows, 0)
    left = [
        np.stack([np.roll(a, len(a) - len(row)) for a, row in zip(x, rows, strict=True)]) for x in (ids, mask)
    ]

    assert (encoder.spec.decoder.pooling, encoder.spec.decoder.attention) == (
        "latent-attention",
        "bidirectional",
    )
    assert all((row[0], row[-1]) == (101, 1011) for row in rows)  # it was trained with both
    np.testing.assert_allclose(encoder.encode(rows), expected, atol=1e-5)
    (alone,) = encoder.encode(rows[1:2])
    np.testing.assert_allclose(alone, expected[1], atol=1e-5)
    found = open_session(nvembed_exported / GRAPH, "cpu").run(
        [OUTPUT], dict(zip(("input_ids", "attention_mask"), left, strict=True))
    )
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    assert check(nvembed_exported, str(nvembed), EncoderConfig())["passed"]


def test_an_instruction_is_seen_and_not_pooled(nvembed_exported, nvembed_vector):
    encoder = load_encoder(EncoderConfig(model=str(nvembed_exported)))
    rows = [encoder.query_tokenizer.encode(text) for text in TEXTS]
    # as many from the start as the instruction has by itself, which its first token takes one place of
    first = len(encoder.tokenizer.tokenize(ASKED).ids)
    expected = [nvembed_vector(row, first) for row in rows]

    np.testing.assert_allclose(encoder.encode_queries(TEXTS), expected, atol=1e-5)
    ids, mask = pad([*rows, encoder.tokenizer.encode("a")], 0)
    feeds = {
        "input_ids": ids[:, ::-1],
        "attention_mask": mask[:, ::-1],
    }  # no row begins with it the wrong way round
    found = open_session(nvembed_exported / GRAPH, "cpu").run([OUTPUT], feeds)[0]
    np.testing.assert_allclose(found[2], nvembed_vector(rows[2][::-1]), atol=1e-5)
    assert np.abs(expected[2] - nvembed_vector(rows[2])).max() > 1e-2


# --- multi-layer pooling


def test_all_layers_are_pooled_where_the_checkpoint_was_trained_so(tmp_path):
    folder = encoder_models.tiny_multi_layer(tmp_path / "model")
    export(EncoderConfig(model=str(folder), precision="fp16", dims=16), tmp_path / "encoder")
    encoder = load_encoder(EncoderConfig(model=str(tmp_path / "encoder")))
    rows = [encoder.tokenizer.encode(text) for text in TEXTS]
    transformer = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    t = tensors_of(folder / "attn_pool.safetensors")
    expected = [multi_layers(every_layer(transformer, row, bidirectional=False)[:, -1], t) for row in rows]

    assert (encoder.spec.decoder.pooling, encoder.spec.decoder.attention) == ("multi-layer", "causal")
    cosines = [own @ unit(vector[:16]) for own, vector in zip(encoder.encode(rows), expected, strict=True)]
    assert min(cosines) > 0.9999
    graph = onnx.load(tmp_path / "encoder" / GRAPH).graph
    head, body = (
        {one.data_type for one in graph.initializer if one.name.startswith("head.") == of_head}
        for of_head in (True, False)
    )
    assert head == {TensorProto.FLOAT, TensorProto.INT64}
    assert TensorProto.FLOAT16 in body


@pytest.mark.parametrize("tokens", ["mean", "lasttoken"])
def test_each_layer_is_pooled_to_its_mean_or_its_last_token(tmp_path, tokens):
    folder = read_model(encoder_models.tiny_multi_layer(tmp_path))
    trained = find_trained(folder, "multi-layer")
    states = np.random.default_rng(0).normal(size=(4, 2, 6, encoder_models.WIDTH)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]])
    t = tensors_of(tmp_path / "attn_pool.safetensors")
    mean = tokens == "mean"
    texts = [states[:, row, kept > 0] for row, kept in enumerate(mask)]
    expected = [multi_layers(text.mean(axis=1) if mean else text[:, -1], t) for text in texts]

    found = run_head(Head((tokens,), ("normalize",), trained), states, mask)
    by_torch = [Weights.load(trained).pool(list(torch.from_numpy(text)), 0, mean) for text in texts]

    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose([unit(vector.numpy()) for vector in by_torch], expected, atol=1e-5)


def run_head(head, states, mask, ids=None, left_out=()):
    """The head alone, behind a graph that gives out the states of each layer that it is given."""
    names = [f"states.{layer}" for layer in range(len(states))]
    shape = ["n", "length", states.shape[-1]]
    both = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    given = [helper.make_tensor_value_info(f"given.{name}", TensorProto.FLOAT, shape) for name in names]
    nodes = [helper.make_node("Identity", [f"given.{name}"], [name]) for name in names]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
    graph = helper.make_graph(nodes, "g", [*both, *given], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    append_head(model, names, head, left_out=left_out)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {f"given.{name}": layer for name, layer in zip(names, states, strict=True)}
    feeds |= {"input_ids": np.zeros_like(mask) if ids is None else ids, "attention_mask": mask}
    wanted = {value.name for value in session.get_inputs()}
    return session.run([OUTPUT], {name: value for name, value in feeds.items() if name in wanted})[0]


# --- which tokens are a prompt's


def test_the_longest_prompt_that_a_row_begins_with_is_left_out():
    states = np.random.default_rng(0).normal(size=(1, 5, 6, 4)).astype(np.float32)
    ids = np.array(
        [[1, 7, 8, 9, 5, 2], [0, 1, 7, 8, 4, 2], [1, 7, 5, 2, 0, 0], [1, 8, 7, 5, 5, 2], [0, 0, 0, 0, 1, 7]]
    )
    mask = np.array([[1] * 6, [0] + [1] * 5, [1] * 4 + [0] * 2, [1] * 6, [0] * 4 + [1] * 2])
    left_out = (LeftOut((1, 7, 8), 3), LeftOut((1, 7, 8, 9), 4))
    kept = [slice(4, 6), slice(4, 6), slice(0, 4), slice(0, 6), slice(4, 6)]

    found = run_head(Head(("mean",), ()), states, mask, ids, left_out)

    expected = [states[0, row, own].mean(axis=0) for row, own in enumerate(kept)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_prompt_is_known_by_the_tokens_that_no_text_changes(nvembed):
    definition = json.loads((nvembed / "tokenizer.json").read_text())
    (one,) = leave_out(definition, ("", "query: ", "query: "))

    assert one == LeftOut((101, 23032, 1024), 2)
    assert leave_out(definition, ("query: {text} [ask]",)) == (one,)
    with pytest.raises(UsageError, match="no token of its own before every text"):
        leave_out(definition, ("wat",))


def test_a_blank_at_its_end_that_joins_the_text_counts_for_the_token_before_the_row():
    """As Mistral's tokenizer has it: then what is left out is that token and all of the prompt."""
    words = ["<unk>", "<s>", "▁Query", ":", "▁", "▁a", "a"]
    definition = {
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [[word, -1.0] for word in words]},
    }
    tokenizer = Tokenizer(json.dumps(definition).encode(), "Query: ")

    (one,) = leave_out(definition, ("Query: ",))

    assert tokenizer.encode("a a").tolist() == [1, 2, 3, 5, 5]
    assert one == LeftOut((1, 2, 3), 3)


# --- what a checkpoint brings


def test_what_is_pooled_is_part_of_the_version(nvembed, tmp_path):
    plain = encoder_models.tiny_decoder(tmp_path / "plain")
    multi = encoder_models.tiny_multi_layer(tmp_path / "multi")
    spec = describe(EncoderConfig(model=str(multi)))

    assert describe(EncoderConfig(model=str(plain))).decoder is None
    hows = [{}, {"pooling": "mean"}, {"pooling": "last"}, {"attention": "bidirectional"}]
    specs = [describe(EncoderConfig(model=str(multi), decoder=DecoderConfig(**how))) for how in hows]
    assert [one.decoder.pooling for one in specs] == ["multi-layer", "mean", "last", "multi-layer"]
    assert len({one.version for one in specs}) == 4
    assert (
        describe(EncoderConfig(model=str(nvembed), decoder=DecoderConfig(prompt="prompteol"))).decoder.pooling
        == "last"
    )

    tensors = load_file(multi / "attn_pool.safetensors")
    tensors["latents"][0, 0] += 1
    save_file(tensors, multi / "attn_pool.safetensors")
    assert describe(EncoderConfig(model=str(multi))).version != spec.version


def test_a_model_that_says_so_lets_all_tokens_see_each_other(tmp_path):
    folder = encoder_models.tiny_decoder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    how = EncoderConfig(model=str(folder), decoder=DecoderConfig(pooling="mean"))
    assert describe(how).decoder.attention == "causal"

    (folder / "config.json").write_text(json.dumps(config | {"is_causal": False}))
    assert describe(how).decoder.attention == "bidirectional"


@pytest.mark.parametrize("pooling", ["latent-attention", "multi-layer"])
def test_a_pooling_whose_weights_are_not_there_is_refused_by_their_names(tmp_path, pooling):
    folder = encoder_models.tiny_decoder(tmp_path / "model")
    (folder / "attn_pool.pt").write_bytes(b"a pickle")
    config = EncoderConfig(
        model=str(folder), cache=str(tmp_path / "cache"), decoder=DecoderConfig(pooling=pooling)
    )

    with pytest.raises(UsageError, match=r"cross_attend_blocks\.0\.fn\.to_kv\.weight") as refused:
        load_encoder(config)
    assert ("torch.load" in str(refused.value)) == (pooling == "multi-layer")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cross_attend_blocks.1.fn.net.2.bias": None},
            r"lacks latent_attention_model.cross_attend_blocks.1.fn.net.2",
        ),
        ({"latents": (6, 31)}, r"latent_attention_model.latents of shape \(6, 31\).* \(6, 32\), for a model"),
        ({"cross_attend_blocks.0.fn.to_q.weight": (12, 32)}, r"to_q.weight of shape \(12, 32\).* \(10, 32\)"),
    ],
)
def test_a_checkpoint_whose_pooling_is_damaged_is_refused(tmp_path, change, message):
    folder = encoder_models.tiny_nvembed(tmp_path / "model")
    file = folder / "model-00002-of-00002.safetensors"
    tensors = load_file(file)
    for name, shape in change.items():
        del tensors[f"latent_attention_model.{name}"]
        if shape:
            tensors[f"latent_attention_model.{name}"] = torch.zeros(shape)
    save_file(tensors, file)

    with pytest.raises(EncoderError, match=message):
        load_encoder(EncoderConfig(model=str(folder), cache=str(tmp_path / "cache")))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("value", [None, "abc", [1], 2.5, 0, True])
def test_settings_of_a_pooling_that_are_no_numbers_are_refused(tmp_path, value):
    folder = encoder_models.tiny_nvembed(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["latent_attention_config"]["num_cross_heads"] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match=r"num_cross_heads = .*A whole number above 0"):
        describe(EncoderConfig(model=str(folder)))


def test_settings_of_a_pooling_that_are_none_are_refused(tmp_path):
    folder = encoder_models.tiny_nvembed(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"latent_attention_config": "large"}))
    with pytest.raises(EncoderError, match="latent_attention_config = 'large'"):
        describe(EncoderConfig(model=str(folder)))


def test_fewer_layers_told_apart_than_the_model_has_are_refused(tmp_path):
    folder = encoder_models.tiny_multi_layer(tmp_path, layers=3)
    with pytest.raises(EncoderError, match=r"pos_emb.weight of shape \(3, 32\) .* \(4, 32\)"):
        describe(EncoderConfig(model=str(folder)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "prompteol"}, "with prompt = 'prompteol'"),
        ({"out_layer": -2}, "with out_layer = -2"),
    ],
)
def test_trained_weights_take_the_text_alone_and_all_layers(nvembed, settings, message):
    with pytest.raises(UsageError, match=message):
        describe(
            EncoderConfig(model=str(nvembed), decoder=DecoderConfig(pooling="latent-attention", **settings))
        )


def test_another_transformer_than_a_mistral_is_refused(tmp_path):
    folder = encoder_models.tiny_nvembed(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["model_type"] = "llama"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match="'llama' for its transformer"):
        describe(EncoderConfig(model=str(folder)))


def test_a_prompt_around_a_query_is_another_version_and_has_one_place(tmp_path):
    folder = encoder_models.settings_folder(tmp_path)
    prompts = ("asked: ", "asked: {text}\nanswered:")
    assert len({describe(EncoderConfig(model=str(folder), query_prompt=one)).version for one in prompts}) == 2
    behind = [
        describe(EncoderConfig(model=str(folder), query_prompt=one)).version for one in ("q: ", "q: {text}")
    ]
    assert behind[0] == behind[1]
    with pytest.raises(UsageError, match="2 places for the text"):
        describe(EncoderConfig(model=str(folder), query_prompt="{text} or {text}"))
