from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from encoder_models import modules, settings_folder

from pipeline.config import EncoderConfig
from pipeline.encoders import describe
from pipeline.encoders.decoders.spec import DecoderSpec
from pipeline.encoders.describe import tokenizer_definition
from pipeline.encoders.long import LongSpec
from pipeline.encoders.spec import EncoderSpec
from pipeline.errors import UsageError


@pytest.fixture
def config(tmp_path):
    folder = settings_folder(tmp_path / "model")
    return EncoderConfig(model=str(folder), cache=str(tmp_path / "cache"))


def edited(config, name, **changes):
    """The version after a change to one of the model's JSON files."""
    file = f"{config.model}/{name}"
    with open(file) as stream:
        value = json.load(stream)
    with open(file, "w") as stream:
        json.dump(value | changes, stream)
    return describe(config).version


def test_a_version_is_64_hex_digits_and_lasts(config):
    first = describe(config)

    assert len(first.version) == 64
    assert int(first.version, 16)
    assert describe(config) == first
    assert pickle.loads(pickle.dumps(first)).version == first.version


@pytest.mark.parametrize(
    ("changes", "version"),
    [
        ({}, "fb4b1f9c5254292431577bc109741287fc9442179aef63e122034773e453b1d5"),
        ({"precision": "fp16"}, "485fb78f1c6b2df2fac6fb65001cfadc0b403d4a7df7edd537b05123b05c100f"),
        ({"precision": "int8"}, "2b1a8cdbb2de83742c7f0834e36bb79df680ad724efea0d6d17c4b4ad966077b"),
        ({"layers": 4}, "736cbc8691347eacd2abd2f8bd68900332b08a739426d064cd73277947f8f793"),
        (
            {"max_tokens": 2048, "long": LongSpec("pcw", 512, 4)},
            "c8f95bcd9b7dc248acefdec19bdeb0a3882e2978f23e1dd57746f555a9d4bb86",
        ),
        (
            {"decoder": DecoderSpec("prompteol", 1, 6, 20, "last", "causal")},
            "deb5b17694fc420fe9f5705f8be6429410ec3701c0a84698371f5eac9ae4605a",
        ),
    ],
)
def test_versions_stay_what_they_are(changes, version):
    """Another number here embeds all that is stored again: raise it on purpose, where the vectors are others."""
    spec = EncoderSpec(
        source="anywhere",
        format="safetensors",
        weights="0a" * 32,
        tokenizer="1b" * 32,
        config="2c" * 32,
        modules=("mean", "normalize"),
        document_prompt="",
        query_prompt="query: ",
        max_tokens=256,
        dims=384,
        precision="fp32",
    )

    assert replace(spec, **changes).version == version


def test_the_version_does_not_depend_on_where_the_files_are(config, tmp_path):
    shutil.copytree(config.model, tmp_path / "elsewhere")

    here, there = describe(config), describe(config.model_copy(update={"model": str(tmp_path / "elsewhere")}))

    assert here.version == there.version
    assert here.source != there.source


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"hidden_act": "relu"}),
        ("1_Pooling/config.json", {"pooling_mode": "cls"}),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}),
        ("sentence_bert_config.json", {"max_seq_length": 128}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
    ],
)
def test_what_changes_vectors_changes_the_version(config, name, changes):
    before = describe(config).version

    assert edited(config, name, **changes) != before


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"transformers_version": "9.9", "_name_or_path": "x", "use_cache": True}),
        ("tokenizer.json", {"truncation": None, "padding": {"strategy": "fixed"}}),
    ],
)
def test_what_does_not_change_vectors_does_not_change_the_version(config, name, changes):
    before = describe(config).version

    assert edited(config, name, **changes) == before


@pytest.mark.parametrize(
    "changes",
    [{"precision": "int8"}, {"max_tokens": 100}, {"document_prompt": "passage: "}, {"query_prompt": "q: "}],
)
def test_settings_that_change_vectors_change_the_version(config, changes):
    assert describe(config.model_copy(update=changes)).version != describe(config).version


@pytest.mark.parametrize("changes", [{"provider": "cpu"}, {"threads": 3}, {"batch_tokens": 7}])
def test_settings_of_the_run_do_not(config, changes):
    assert describe(config.model_copy(update=changes)).version == describe(config).version


def test_changed_weights_are_seen_though_hashes_are_remembered(config, tmp_path):
    before = describe(config).version
    weights = f"{config.model}/model.safetensors"
    stat = os.stat(weights)
    with open(weights, "wb") as stream:
        stream.write(b"DATA")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))

    assert describe(config).version != before


def test_a_changed_tokenizer_is_seen_though_its_hash_is_remembered(config, tmp_path):
    model = shutil.copytree(config.model, tmp_path / "copied")
    changed = config.model_copy(update={"model": str(model)})
    before = describe(changed).version
    file = model / "tokenizer.json"
    text, stat = file.read_text(), file.stat()
    file.write_text(text.replace("{", '{"more": 1, ', 1))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert describe(changed).version != before
    file.write_text(text)
    assert describe(changed).version == before


def test_a_remembered_hash_is_used(config, tmp_path):
    before = describe(config)
    (note,) = (tmp_path / "cache" / "hashes").iterdir()
    note.write_text("0" * 64)

    assert describe(config).weights != before.weights
    note.write_text("half a ha")  # of a damaged note the file itself is the judge
    assert describe(config).weights == before.weights


def test_describe_needs_no_cache_it_can_write(config):
    assert describe(config.model_copy(update={"cache": "/proc/nowhere"})).version == describe(config).version


def test_the_longest_input_is_what_the_model_says_within_its_positions(config):
    assert describe(config).max_tokens == 256
    edited(config, "sentence_bert_config.json", max_seq_length=4096)
    assert describe(config).max_tokens == 512
    edited(config, "sentence_bert_config.json", max_seq_length=None)
    assert describe(config).max_tokens == 512
    edited(config, "config.json", model_type="roberta", pad_token_id=1, max_position_embeddings=514)
    assert describe(config).max_tokens == 512


def test_more_tokens_than_the_model_has_positions_are_refused(config):
    assert describe(config.model_copy(update={"max_tokens": 512})).max_tokens == 512
    with pytest.raises(UsageError, match=r"513.*positions for 512"):
        describe(config.model_copy(update={"max_tokens": 513}))


def test_prompts_come_from_the_model_unless_set(config, tmp_path):
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": None}
    settings_folder(tmp_path / "model", **{"config_sentence_transformers.json": prompts})

    spec = describe(config)
    assert (spec.document_prompt, spec.query_prompt) == ("passage: ", "query: ")
    spec = describe(config.model_copy(update={"document_prompt": "", "query_prompt": "ask: "}))
    assert (spec.document_prompt, spec.query_prompt) == ("", "ask: ")


def test_dims_follow_pooling_and_dense_layers(config, tmp_path):
    assert describe(config).dims == 384
    edited(config, "1_Pooling/config.json", pooling_mode=["cls", "mean"])
    assert describe(config).dims == 768
    listed = modules("", "Transformer", "1_Pooling", "Pooling", "2_Dense", "Dense")
    dense = {"in_features": 768, "out_features": 64}
    files = {"modules.json": listed, "2_Dense/config.json": dense, "2_Dense/model.safetensors": b"data"}
    settings_folder(tmp_path / "model", **files)
    assert describe(config).dims == 64


def test_lower_casing_of_texts_becomes_the_tokenizers(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(
        json.dumps({"truncation": {"max_length": 128}, "padding": {}, "normalizer": {"type": "NFC"}})
    )

    definition = tokenizer_definition(file, lowercase=True)

    assert definition["truncation"] is None
    assert definition["padding"] is None
    assert definition["normalizer"]["normalizers"] == [{"type": "Lowercase"}, {"type": "NFC"}]


def test_describing_loads_no_model_library(config):
    code = (
        "import sys\n"
        "from pipeline.config import EncoderConfig\n"
        "from pipeline.encoders import describe\n"
        f"describe(EncoderConfig(model={config.model!r}, cache={config.cache!r}))\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'sentence_transformers', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
