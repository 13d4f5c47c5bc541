"""Encoders out of decoder-only language models: what a prompt puts around a text, which layers run, what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import encoder_models
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.config import DecoderConfig, EncoderConfig, Settings, StoreConfig
from pipeline.encoders import Encoder, check, describe, export, load_encoder
from pipeline.encoders.decoders.gguf import read_gguf
from pipeline.encoders.decoders.loading import load_decoder
from pipeline.encoders.decoders.magnitudes import large_values
from pipeline.encoders.decoders.prepending import shorten
from pipeline.encoders.decoders.prompts import PROMPTS, templates_of
from pipeline.encoders.decoders.reading import read_model
from pipeline.encoders.decoders.reference import hidden_states, vectors
from pipeline.encoders.decoders.spec import DecoderSpec
from pipeline.encoders.decoders.wording import Wording, word, worded
from pipeline.encoders.exported import GRAPH, read_manifest
from pipeline.encoders.fp16 import to_fp16
from pipeline.encoders.parity import pad
from pipeline.encoders.running import Runner
from pipeline.encoders.runtime import open_session
from pipeline.errors import EncoderError, UsageError
from pipeline.job import make_contract
from pipeline.tokens import Tokenizer, load_tokenizer
from pipeline.versions import Contract

TEXTS = ["a", "rivers and hills", "the water of the river runs from the hills to the sea"]
PREPENDING = DecoderSpec("prompteol", 1, 2, 3, "last", "causal")


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory):
    return encoder_models.tiny_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def transformer(decoder_folder):
    return load_decoder(read_model(decoder_folder))


@pytest.fixture(scope="module")
def definition(decoder_folder):
    return json.loads((decoder_folder / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def exported(decoder_folder, tmp_path_factory):
    """PromptEOL with Token Prepending out of the first three layers, written by the command."""
    out = tmp_path_factory.mktemp("exported") / "encoder"
    flags = [
        "--prompt",
        "prompteol",
        "--token-prepending",
        "--start",
        "1",
        "--exit",
        "2",
        "--out-layer",
        "-2",
    ]
    said = CliRunner().invoke(app, ["encoders", "export", str(decoder_folder), "--out", str(out), *flags])
    assert said.exit_code == 0, said.output
    return out


def described(folder, **decoder):
    return describe(EncoderConfig(model=str(folder), decoder=DecoderConfig(**decoder)))


def rows_of(definition, decoder, texts=TEXTS):
    wording = word(definition, decoder, {"eos_token_id": 102})
    tokenizer = Tokenizer(json.dumps(worded(definition, wording)).encode())
    return wording, [tokenizer.encode(text) for text in texts]


def pad_left(rows, pad_id=0):
    ids, mask = pad(rows, pad_id)
    return tuple(
        np.stack([np.roll(row, ids.shape[1] - len(own)) for row, own in zip(array, rows, strict=True)])
        for array in (ids, mask)
    )


def by_graph(folder, ids, mask):
    return open_session(folder / GRAPH, "cpu").run(None, {"input_ids": ids, "attention_mask": mask})[0]


# --- prompts


def test_without_prepending_the_slot_and_its_blank_are_not_said():
    assert templates_of("prompteol", False) == ('This sentence : "{text}" means in one word:"',)
    assert templates_of("prompteol", True) == ('This sentence : <PST> "{text}" means in one word:"',)
    assert len(templates_of("metaeol", True)) == 8
    for prompt in PROMPTS:
        for plain, slotted in zip(templates_of(prompt, False), templates_of(prompt, True), strict=True):
            assert slotted.count('this sentence : <PST> "{text}"') + slotted.startswith("This") == 1
            assert plain == slotted.replace("<PST> ", "")


@pytest.mark.parametrize(
    ("prompt", "prepending", "message"),
    [
        ("Summarise this:", False, "0 places for the text"),
        ("promteol", False, "Did you mean 'prompteol'"),
        ("{text} or {text}", False, "2 places for the text"),
        ("{text} in one word:", True, "<PST> once, before {text}"),
        ("{text} <PST> in one word:", True, "<PST> once, before {text}"),
        ("<PST> '{text}' <PST>", True, "<PST> once, before {text}"),
        ("", True, "token_prepending without encoder.decoder.prompt"),
    ],
)
def test_a_prompt_without_its_places_is_refused(decoder_folder, prompt, prepending, message):
    with pytest.raises(UsageError, match=message):
        described(decoder_folder, prompt=prompt, token_prepending=prepending)


@pytest.mark.parametrize("prompt", [*PROMPTS, "Essence of <PST> '{text}' is", "{text}, in short:"])
def test_a_text_is_cut_and_the_prompt_never(definition, prompt):
    wording = word(definition, DecoderSpec(prompt, 0, 0, 4, "last", "causal"), {})
    tokenizer = Tokenizer(json.dumps(worded(definition, wording)).encode())
    room = 500 - tokenizer.special_tokens

    for words in (0, 1, 40, 4000):
        ids = tokenizer.model_input(tokenizer.tokenize("river " * words).ids[:room])
        for row, (before, after) in zip(wording.inputs(ids), wording.rows, strict=True):
            assert tuple(row[: len(before)]) == before
            assert tuple(row[len(row) - len(after) :]) == after
            assert len(row) - len(before) - len(after) == min(words, room)
    plain = [template.partition("{text}") for template in templates_of(prompt, False)]
    said = {tuple(tokenizer.tokenize(after).ids) for _, _, after in plain}
    assert {after for _, after in wording.rows} == said


def test_an_instruction_goes_before_the_text_inside_the_prompt(exported):
    plain, asking = (load_tokenizer(exported / "tokenizer.json", prompt) for prompt in ("", "query: "))
    (before, after) = Wording.read(read_manifest(exported)).rows[0]

    assert tuple(asking.encode("a river")[: len(before)]) == before
    assert tuple(asking.encode("a river")[-len(after) :]) == after
    assert list(asking.encode("a river")) == list(plain.encode("query: a river"))


def test_the_end_of_the_text_is_pooled_where_it_is_asked_for(definition):
    _, rows = rows_of(definition, DecoderSpec("knowledge", 0, 0, 4, "eos", "causal"))
    assert [row[-1] for row in rows] == [102] * 3
    _, rows = rows_of(definition, DecoderSpec("", 0, 0, 4, "eos", "causal"))
    assert [list(row[-2:] == 102) for row in rows] == [[False, True]] * 3  # it was there already
    with pytest.raises(EncoderError, match="eos_token_id is None"):
        word(definition, DecoderSpec("", 0, 0, 4, "eos", "causal"), {})


@pytest.mark.parametrize("decoder", [{"pooling": "mean"}, {"prompt": "knowledge", "token_prepending": True}])
def test_a_collections_contract_makes_the_same_encoder_again(decoder_folder, decoder):
    config = EncoderConfig(model=str(decoder_folder), decoder=DecoderConfig(**decoder))
    spec = describe(config)
    contract = make_contract(Settings(encoder=config, store=StoreConfig(collection="c")), spec, "")
    read = Contract.read(json.loads(json.dumps(contract.metadata())), "c")

    again = read.encoder_config(EncoderConfig())

    assert describe(again) == spec
    assert again.model_dump()["decoder"] == spec.settings["decoder"]


def test_a_prompt_and_its_template_are_one_version(decoder_folder):
    def version(prompt, prepending=False):
        how = DecoderConfig(prompt=prompt, token_prepending=prepending)
        return describe(EncoderConfig(model=str(decoder_folder), decoder=how)).version

    (template,) = PROMPTS["prompteol"]
    assert version("prompteol") == version(template) == version(template.replace("<PST> ", ""))
    assert version("prompteol") not in (version("prompteol", True), version("knowledge"))


def test_an_exported_decoder_takes_its_own_settings_and_no_others(exported):
    spec = describe(EncoderConfig(model=str(exported)))
    own = spec.settings["decoder"]
    assert describe(EncoderConfig(model=str(exported), decoder=DecoderConfig(prompt=own["prompt"]))) == spec
    with pytest.raises(UsageError, match=r"decoder.pooling = 'eos', and .* was exported with"):
        describe(EncoderConfig(model=str(exported), decoder=DecoderConfig(pooling="eos")))


# --- what runs


@pytest.mark.parametrize("side", [pad, pad_left])
@pytest.mark.parametrize(
    "decoder",
    [
        PREPENDING,
        replace(PREPENDING, exit=4, out_layer=4),
        replace(PREPENDING, start=0, exit=1, pooling="mean"),
        replace(PREPENDING, attention="bidirectional"),
        DecoderSpec("knowledge", 0, 0, 4, "last", "causal"),
        DecoderSpec("", 0, 0, 2, "weighted-mean", "bidirectional"),
    ],
)
def test_what_is_exported_is_the_stock_model_with_hooks(transformer, definition, decoder, side):
    wording, rows = rows_of(definition, decoder)
    alone = np.concatenate([vectors(transformer, decoder, wording.slot, *pad([row], 0)) for row in rows])
    shortened = copy.deepcopy(transformer)
    places = shorten(shortened, decoder, wording.slot)
    ids, mask = side(rows, 0)

    expected = hidden_states(transformer, decoder, wording.slot, ids, mask)[decoder.out_layer]
    with torch.inference_mode():
        given = places.start(torch.from_numpy(ids), torch.from_numpy(mask))
        got = shortened(input_ids=torch.from_numpy(ids), attention_mask=given)[0].numpy()

    np.testing.assert_allclose(got[mask > 0], expected[mask > 0], rtol=1e-5, atol=1e-4)  # states reach 20
    np.testing.assert_allclose(vectors(transformer, decoder, wording.slot, ids, mask), alone, atol=1e-5)


def test_without_prepending_it_is_the_models_own_hidden_state(transformer, definition):
    decoder = DecoderSpec("prompteol", 0, 0, 2, "last", "causal")
    wording, rows = rows_of(definition, decoder)
    with torch.inference_mode():
        ids = torch.from_numpy(rows[2][None].astype(np.int64))
        own = transformer(input_ids=ids, output_hidden_states=True).hidden_states[2][0, -1].numpy()

    got = vectors(transformer, decoder, wording.slot, *pad([rows[2]], 0))[0]

    np.testing.assert_allclose(got, own / np.linalg.norm(own), atol=1e-6)


def test_prepending_changes_what_follows_the_slot_and_nothing_before_it(transformer, definition):
    wording, rows = rows_of(definition, PREPENDING)
    ids, mask = pad(rows[2:], 0)
    slot = wording.rows[0][0].index(wording.slot)

    on, off = (
        hidden_states(transformer, decoder, wording.slot, ids, mask)[3][0]
        for decoder in (PREPENDING, replace(PREPENDING, start=0, exit=0))
    )

    np.testing.assert_array_equal(on[:slot], off[:slot])
    assert np.abs(on[slot:] - off[slot:]).max(axis=1).min() > 1e-3


# --- the exported encoder


def test_an_exported_decoder_holds_the_layers_that_run_and_no_other(exported, transformer):
    graph = onnx.load(exported / GRAPH).graph
    wide = [tensor for tensor in graph.initializer if sorted(tensor.dims) == [encoder_models.WIDTH, 64]]

    assert len(wide) == 3 * 3  # gate, up and down of three layers
    norm = transformer.norm.weight.detach().numpy()
    assert len([t for t in graph.initializer if list(t.dims) == list(norm.shape)]) <= 2 * 3


def test_an_exported_decoder_gives_the_models_vectors_however_rows_are_padded(exported, transformer):
    encoder = load_encoder(EncoderConfig(model=str(exported)))
    rows = [encoder.tokenizer.encode(text) for text in TEXTS]
    slot = Wording.read(read_manifest(exported)).slot
    expected = vectors(transformer, PREPENDING, slot, *pad(rows, 0))

    assert encoder.spec.decoder == PREPENDING
    assert load_encoder(EncoderConfig(model=str(exported), decoder=DecoderConfig(**PREPENDING.settings)))
    np.testing.assert_allclose(encoder.encode(rows), expected, atol=1e-5)
    np.testing.assert_allclose(by_graph(exported, *pad_left(rows)), expected, atol=1e-5)
    assert check(exported, "", EncoderConfig())["passed"]


def test_a_query_that_is_too_long_keeps_the_prompts_end(exported):
    encoder = load_encoder(EncoderConfig(model=str(exported)))
    whole, cut = encoder.encode_queries(["river " * 96, "river " * (96 - encoder.tokenizer.special_tokens)])

    np.testing.assert_allclose(whole, cut, atol=1e-6)


def test_the_vectors_of_several_prompts_are_averaged(decoder_folder, definition):
    spec = described(decoder_folder, prompt="metaeol")
    wording = word(definition, spec.decoder, {})
    tokenizer = Tokenizer(json.dumps(worded(definition, wording)).encode())
    seen = []

    def run(ids, mask):
        raw = np.stack([ids.sum(axis=1), mask.sum(axis=1)], axis=1).astype(np.float32)
        seen.extend(tuple(row[kept > 0]) for row, kept in zip(ids, mask, strict=True))
        return np.concatenate([raw / np.linalg.norm(raw, axis=1, keepdims=True), raw], axis=1)

    runner, tokenizers = Runner(run, 0, 4096), (tokenizer, tokenizer)
    encoder = Encoder(replace(spec, dims=2), runner, tokenizers, "cpu", wording=wording)
    (got,) = encoder.encode([tokenizer.encode("rivers and hills")])

    body = tuple(tokenizer.tokenize("rivers and hills").ids)
    assert sorted(seen) == sorted((*before, *body, *after) for before, after in wording.rows)
    mean = np.mean([[sum(row), len(row)] for row in seen], axis=0)
    np.testing.assert_allclose(got, mean / np.linalg.norm(mean), rtol=1e-5)


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out_layer": 5}, "the model has 4 layers"),
        ({"out_layer": 0}, "1 to 4, or -1 to -4"),
        ({"prompt": "prompteol", "token_prepending": True, "exit": 4, "out_layer": 3}, "layers below 3 run"),
        ({"prompt": "prompteol", "token_prepending": True, "start": 2, "exit": 2}, "start < exit"),
        ({"prompt": "prompteol", "exit": 3}, "without token_prepending"),
        ({"prompt": "prompteol", "start": 2}, "without token_prepending"),
    ],
)
def test_layers_that_the_model_does_not_have_are_refused(decoder_folder, settings, message):
    with pytest.raises(UsageError, match=message):
        described(decoder_folder, **settings)


def test_settings_of_a_decoder_are_refused_for_an_encoder(tiny_model, decoder_folder):
    with pytest.raises(UsageError, match="says itself what its states become"):
        described(tiny_model, prompt="prompteol")
    assert described(tiny_model, attention="causal").decoder is None
    with pytest.raises(UsageError, match=r"encoder.decoder.out_layer = 2"):
        describe(EncoderConfig(model=str(decoder_folder), layers=2, decoder=DecoderConfig(pooling="last")))


def test_a_checkpoint_without_settings_is_pooled_as_sentence_transformers_does(decoder_folder):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(decoder_folder), device="cpu", local_files_only=True)

    assert describe(EncoderConfig(model=str(decoder_folder))).modules == (model[1].pooling_mode,)


def test_windows_and_several_templates_are_refused_together(decoder_folder):
    long = {"long": "pcw", "max_tokens": 192}
    with pytest.raises(UsageError, match=r"encoder\.long = 'pcw' with a prompt of 8 templates"):
        describe(EncoderConfig(model=str(decoder_folder), **long, decoder=DecoderConfig(prompt="metaeol")))


@pytest.mark.parametrize("settings", [{"decoder": {"prompt": "prompteol"}}, {"query_prompt": "asked: " * 9}])
def test_a_prompt_that_leaves_no_room_for_a_text_is_refused(decoder_folder, tmp_path, settings):
    config = EncoderConfig.model_validate(
        {"model": str(decoder_folder), "cache": str(tmp_path / "cache"), "max_tokens": 12} | settings
    )

    with pytest.raises(UsageError, match="and a row of the model takes 12"):
        export(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path):
    folder = tmp_path / "partial"
    encoder_models.tiny_decoder(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    for decoder in (DecoderConfig(), DecoderConfig(prompt="prompteol")):
        config = EncoderConfig(model=str(folder), cache=str(tmp_path / "cache"), decoder=decoder)
        with pytest.raises(
            EncoderError, match=r"lacks 1 of the model's tensors, layers.2.mlp.up_proj.weight"
        ):
            load_encoder(config)
    assert not [file for file in (tmp_path / "cache").rglob("*.onnx") if file.is_file()]


# --- GGUF


def test_a_gguf_file_is_the_same_model(decoder_folder, transformer, tmp_path):
    file = encoder_models.write_gguf(decoder_folder, tmp_path / "tiny.gguf")
    ids = torch.arange(5, 17)[None]

    assert read_model(tmp_path) == read_model(file)
    spec = described(file, prompt="prompteol", out_layer=-2)
    loaded = load_decoder(read_model(file))

    assert (spec.format, spec.dims, spec.max_tokens, spec.decoder.out_layer) == ("gguf", 32, 96, 3)
    with torch.inference_mode():
        np.testing.assert_allclose(loaded(ids)[0], transformer(ids)[0], atol=1e-5)


def test_a_gguf_file_that_lacks_a_tensor_or_its_end_is_refused(decoder_folder, tmp_path):
    lacking = encoder_models.write_gguf(
        decoder_folder, tmp_path / "a.gguf", "model.layers.1.mlp.up_proj.weight"
    )
    with pytest.raises(EncoderError, match="lacks 1 of the model's tensors"):
        load_decoder(read_model(lacking))
    for kept in (3, 30, 200):
        cut = tmp_path / "b.gguf"
        cut.write_bytes(lacking.read_bytes()[:kept])
        with pytest.raises(EncoderError, match=r"b\.gguf cannot be read"):
            read_gguf(cut)
    with pytest.raises(EncoderError, match="2 GGUF files"):
        read_model(tmp_path)


def test_without_its_packages_a_gguf_file_says_what_to_install(decoder_folder, tmp_path, monkeypatch):
    file = encoder_models.write_gguf(decoder_folder, tmp_path / "tiny.gguf")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    with pytest.raises(EncoderError, match=r"pip install 'headwater\[gguf\]'"):
        load_decoder(read_model(file))


# --- half precision


def test_values_beyond_half_precision_stay_float():
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["x"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "large"], ["residual"], "grow"),
        helper.make_node("Add", ["residual", "masked"], ["sum"], "add"),
        helper.make_node("Mul", ["sum", "small"], ["y"], "shrink"),
        helper.make_node("Mul", ["y", "small"], ["z"], "more"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], "mask", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["mask", "lowest"], ["hidden"], "hide"),
        helper.make_node("Mul", ["hidden", "none"], ["masked"], "unhide"),
    ]
    numbers = {"large": 1e5, "small": 1e-5, "lowest": -3e38, "none": 0.0}
    both = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["n", "l"])
        for n in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        both,
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", "l"])],
        [onnx.numpy_helper.from_array(np.array(value, np.float32), name) for name, value in numbers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    inputs = [(np.array([[1, 7]]), np.array([[1, 0]]))]

    large = large_values(model, inputs)
    to_fp16(model, large)

    assert large == {"residual", "sum"}
    types = {node.name: {name.rpartition(".")[2] for name in node.input} for node in model.graph.node}
    assert "half" not in types["grow"] | types["shrink"]
    assert "half" in types["more"]
