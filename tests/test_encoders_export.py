"""Every kind of model ends as a graph that passes the gate: random weights, real architectures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
import torch
from encoder_models import WIDTH, modules, tiny
from safetensors.torch import save_file
from transformers import AutoModel

from pipeline.config import EncoderConfig
from pipeline.encoders import describe, load_encoder, prepare
from pipeline.encoders.exported import GRAPH, read_manifest
from pipeline.errors import EncoderError, UsageError

TEXTS = [
    "a",
    "rivers and hills",
    "the water of the river runs from the hills to the sea, and the rain fills it again",
]


def by_sentence_transformers(folder):
    """What sentence-transformers makes of TEXTS: float32[3, dims]."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(TEXTS)


def by_us(folder, cache):
    encoder = load_encoder(EncoderConfig(model=str(folder), cache=str(cache)))
    return encoder.encode([encoder.tokenizer.encode(text) for text in TEXTS])


@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [
        ("MPNet", "mean"),  # relative positions by buckets, attention without the operator
        ("Roberta", "cls"),  # positions counted from the padding token
        ("ModernBert", "weightedmean"),  # rotary angles, local attention
        ("Qwen3", "lasttoken"),  # a decoder
    ],
)
def test_an_architecture_and_a_pooling(tmp_path, encoder_cache, architecture, pooling):
    folder = tiny(tmp_path / "model", architecture, pooling)

    vectors = by_us(folder, encoder_cache)

    np.testing.assert_allclose(vectors, by_sentence_transformers(folder), atol=1e-5)


def test_dense_layers_and_joined_poolings(tmp_path, encoder_cache):
    folder = models.tiny_bert(tmp_path / "model", dims=WIDTH)
    pairs = ("", "Transformer", "1_Pooling", "Pooling", "2_Dense", "Dense", "3_Normalize", "Normalize")
    (folder / "modules.json").write_text(json.dumps(modules(*pairs)))
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": WIDTH, "pooling_mode": ["cls", "mean"]})
    )
    (folder / "2_Dense").mkdir()
    dense = {"in_features": 2 * WIDTH, "out_features": 8, "bias": True}
    dense["activation_function"] = "torch.nn.modules.activation.GELU"
    (folder / "2_Dense" / "config.json").write_text(json.dumps(dense))
    weights = {"linear.weight": torch.randn(8, 2 * WIDTH), "linear.bias": torch.randn(8)}
    save_file(weights, folder / "2_Dense" / "model.safetensors")

    vectors = by_us(folder, encoder_cache)

    assert vectors.shape == (3, 8)
    np.testing.assert_allclose(vectors, by_sentence_transformers(folder), atol=1e-5)


def graph_of(folder: Path, opset: int) -> None:
    """Replace a folder's weights by an ONNX graph of the usual form, token type ids among its inputs."""
    model = AutoModel.from_pretrained(folder).eval()
    ids = torch.ones((2, 9), dtype=torch.long)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    (folder / "onnx").mkdir()
    torch.onnx.export(
        model,
        (ids, torch.ones_like(ids), torch.zeros_like(ids)),
        str(folder / "onnx" / "model.onnx"),
        dynamo=True,
        verbose=False,
        opset_version=opset,
        input_names=names,
        output_names=["last_hidden_state", "pooler_output"],
        dynamic_shapes=[{0: "batch", 1: "length"}] * 3,
        external_data=False,
    )
    (folder / "model.safetensors").unlink()


@pytest.fixture(scope="module")
def onnx_only(tmp_path_factory):
    folder = models.tiny_bert(tmp_path_factory.mktemp("onnx") / "model", dims=WIDTH)
    expected = by_sentence_transformers(folder)
    graph_of(folder, opset=18)
    return folder, expected


def test_a_folder_with_an_onnx_graph_and_no_other_weights(onnx_only, encoder_cache):
    folder, expected = onnx_only

    assert describe(EncoderConfig(model=str(folder))).format == "onnx"
    np.testing.assert_allclose(by_us(folder, encoder_cache), expected, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_onnx_graph_at_another_precision(onnx_only, encoder_cache, precision):
    folder, expected = onnx_only
    encoder = load_encoder(EncoderConfig(model=str(folder), cache=str(encoder_cache), precision=precision))

    vectors = encoder.encode_queries(TEXTS)

    assert (vectors * expected).sum(axis=1).min() > 0.99


def test_an_onnx_graph_of_something_else_is_refused(tmp_path, encoder_cache):
    folder = models.tiny_bert(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    pixels = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, ["n", 3])
    labels = onnx.helper.make_tensor_value_info("labels", onnx.TensorProto.FLOAT, ["n", 3])
    node = onnx.helper.make_node("Relu", ["pixels"], ["labels"])
    graph = onnx.helper.make_graph([node], "g", [pixels], [labels])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "model.onnx")

    with pytest.raises(EncoderError, match="takes pixels and gives labels"):
        load_encoder(EncoderConfig(model=str(folder), cache=str(encoder_cache)))


def test_a_tokenizer_is_made_from_its_vocabulary(tmp_path, tiny_model, encoder_cache):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "tokenizer.json").unlink()

    whole = load_encoder(EncoderConfig(model=str(tiny_model), cache=str(encoder_cache)))
    made = load_encoder(EncoderConfig(model=str(folder), cache=str(encoder_cache)))

    assert made.spec.version != whole.spec.version
    np.testing.assert_array_equal(made.encode_queries(TEXTS), whole.encode_queries(TEXTS))


def test_weights_that_do_not_fit_the_architecture_are_refused(tmp_path, encoder_cache):
    folder = models.tiny_bert(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)

    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_encoder(EncoderConfig(model=str(folder), cache=str(encoder_cache)))


def test_attention_becomes_one_operator(tiny_model, encoder_cache):
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache))
    graph = onnx.load(prepare(describe(config), config) / GRAPH).graph

    assert sum(node.op_type == "Attention" for node in graph.node) == 2
    assert [value.name for value in graph.output] == ["sentence_embedding"]


def test_the_real_default_model_reproduces_sentence_transformers(encoder_cache):
    config = EncoderConfig(cache=str(encoder_cache))

    vectors = by_us(models.PACKAGE, encoder_cache)

    np.testing.assert_allclose(vectors, by_sentence_transformers(models.package_folder()), atol=1e-6)
    parity = read_manifest(prepare(describe(config), config))["parity"]
    assert set(parity) == {"exported", "optimised"}
    assert all(figures["difference"] < 1e-5 for figures in parity.values())


@pytest.mark.parametrize("architecture", ["MPNet", "ModernBert"])
def test_the_first_layers_alone(tmp_path, encoder_cache, architecture):
    folder = tiny(tmp_path / "model", architecture, "mean")
    config = EncoderConfig(model=str(folder), cache=str(encoder_cache), layers=1)
    encoder = load_encoder(config)
    ids = [encoder.tokenizer.encode(text) for text in TEXTS]
    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = [
            model(torch.tensor(i[None].astype(int)), output_hidden_states=True).hidden_states[1][0]
            for i in ids
        ]
    expected = torch.nn.functional.normalize(torch.stack([state.mean(dim=0) for state in states]))

    np.testing.assert_allclose(encoder.encode(ids), expected, atol=1e-5)
    assert (prepare(encoder.spec, config) / GRAPH).stat().st_size < (
        prepare_whole(config) / GRAPH
    ).stat().st_size
    with pytest.raises(UsageError, match=r"layers = 3.*has 2"):
        describe(config.model_copy(update={"layers": 3}))
    assert describe(config.model_copy(update={"layers": 2})).layers == 0


def prepare_whole(config):
    whole = config.model_copy(update={"layers": 0})
    return prepare(describe(whole), whole)
