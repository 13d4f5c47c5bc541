from __future__ import annotations

import pytest
from encoder_models import modules, settings_folder

from pipeline.encoders.folder import read_folder
from pipeline.errors import EncoderError

INDEX = "model.safetensors.index.json"


def test_a_plain_transformers_folder_gets_mean_pooling(tmp_path):
    folder = read_folder(
        settings_folder(tmp_path, **{"modules.json": None, "sentence_bert_config.json": None})
    )

    assert folder.head.pooling == ("mean",)
    assert folder.head.layers == ()


def test_modules_follow_each_other_as_listed(tmp_path):
    listed = modules(
        "", "Transformer", "1_Pooling", "Pooling", "2_Dense", "Dense", "3_Normalize", "Normalize"
    )
    dense = {
        "in_features": 384,
        "out_features": 64,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    files = {"modules.json": listed, "2_Dense/config.json": dense, "2_Dense/model.safetensors": b"data"}

    head = read_folder(settings_folder(tmp_path, **files)).head

    assert head.layers[0].out_features == 64
    assert head.layers[0].activation == "Tanh"
    assert head.layers[1] == "normalize"


def test_several_pooling_modes_are_joined_in_the_librarys_order(tmp_path):
    both = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "word_embedding_dimension": 384}

    assert read_folder(settings_folder(tmp_path, **{"1_Pooling/config.json": both})).head.pooling == (
        "cls",
        "mean",
    )


def test_the_transformer_may_have_its_own_folder(tmp_path):
    listed = modules("0_Transformer", "Transformer", "1_Pooling", "Pooling")
    moved = ("config.json", "tokenizer.json", "model.safetensors", "sentence_bert_config.json")
    settings_folder(tmp_path, **{"modules.json": listed})
    (tmp_path / "0_Transformer").mkdir()
    for name in moved:
        (tmp_path / name).rename(tmp_path / "0_Transformer" / name)

    folder = read_folder(tmp_path)

    assert folder.weights == (tmp_path / "0_Transformer" / "model.safetensors",)
    assert folder.settings["max_seq_length"] == 256


def test_sharded_weights(tmp_path):
    files = {INDEX: {"weight_map": {"a": "b.safetensors", "c": "a.safetensors"}}, "model.safetensors": None}
    files |= {"a.safetensors": b"1", "b.safetensors": b"2"}

    weights = read_folder(settings_folder(tmp_path, **files)).weights

    assert [file.name for file in weights] == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("place", ["onnx/model.onnx", "model.onnx"])
def test_an_onnx_graph_and_its_data_where_there_is_nothing_else(tmp_path, place):
    files = {"model.safetensors": None, place: b"graph", f"{place}_data": b"data"}

    folder = read_folder(settings_folder(tmp_path, **files))

    assert folder.format == "onnx"
    assert [file.name for file in folder.weights] == ["model.onnx", "model.onnx_data"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"model.safetensors": None, "pytorch_model.bin": b"pickle"}, "runs whatever code"),
        ({"model.safetensors": None}, "no weights"),
        ({"model.safetensors": None, INDEX: {"weight_map": {"a": "gone.safetensors"}}}, "gone.safetensors"),
        ({"model.safetensors": None, INDEX: {"weight_map": {"a": "../x.safetensors"}}}, "x.safetensors"),
        ({"model.safetensors": None, INDEX: {"weight_map": ["a.safetensors"]}}, "names no files"),
        ({"model.safetensors": None, INDEX: {"weight_map": {"a": 3}}}, "names 3"),
        ({"config.json": None}, "config.json is missing"),
        ({"config.json": {"hidden_size": 3}}, "no model_type"),
        ({"config.json": b"{"}, "cannot be read"),
        (
            {"config.json": {"model_type": "x", "auto_map": {"AutoModel": "code.Model"}}},
            "Python code of its own",
        ),
        ({"modules.json": [{"idx": 0, "path": "", "type": "custom.Transformer"}]}, "Python code of its own"),
        ({"modules.json": modules("", "Transformer", "../other", "Pooling")}, "outside its folder"),
        ({"modules.json": modules("", "BoW")}, "begins with BoW"),
        ({"modules.json": modules("", "Transformer", "1_LSTM", "LSTM")}, "is LSTM"),
        ({"modules.json": modules("", "Transformer", "1_Normalize", "Normalize")}, "no Pooling"),
        ({"modules.json": b"[]"}, "begins with nothing"),
        ({"1_Pooling/config.json": {"pooling_mode": "median"}}, "median"),
        (
            {"1_Pooling/config.json": {"pooling_mode": "mean", "include_prompt": False}},
            "leaves the prompt out",
        ),
        ({"config_sentence_transformers.json": {"prompts": ["query: "]}}, "Prompts by their names"),
        (
            {
                "modules.json": modules("", "Transformer", "1_Pooling", "Pooling", "2_Dense", "Dense"),
                "2_Dense/config.json": {"in_features": 384},
                "2_Dense/model.safetensors": b"",
            },
            "out_features = None",
        ),
        ({"tokenizer.json": None}, "no tokenizer"),
    ],
)
def test_what_cannot_be_used_is_refused_with_an_explanation(tmp_path, files, says):
    settings_folder(tmp_path, **files)

    with pytest.raises(EncoderError, match=says):
        read_folder(tmp_path)


def test_a_pickled_dense_layer_is_refused(tmp_path):
    listed = modules("", "Transformer", "1_Pooling", "Pooling", "2_Dense", "Dense")
    files = {"modules.json": listed, "2_Dense/pytorch_model.bin": b"pickle"}
    files |= {"2_Dense/config.json": {"in_features": 384, "out_features": 64}}

    with pytest.raises(EncoderError, match=r"pytorch_model\.bin"):
        read_folder(settings_folder(tmp_path, **files))


def test_a_dense_layer_with_code_for_an_activation_is_refused(tmp_path):
    listed = modules("", "Transformer", "1_Pooling", "Pooling", "2_Dense", "Dense")
    dense = {"in_features": 384, "out_features": 64, "activation_function": "os.system"}
    files = {"modules.json": listed, "2_Dense/config.json": dense, "2_Dense/model.safetensors": b""}

    with pytest.raises(EncoderError, match=r"os\.system"):
        read_folder(settings_folder(tmp_path, **files))


def test_pickles_beside_safetensors_are_left_alone(tmp_path):
    folder = read_folder(settings_folder(tmp_path, **{"pytorch_model.bin": b"pickle"}))

    assert [file.name for file in folder.weights] == ["model.safetensors"]
