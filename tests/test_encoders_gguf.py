"""GGUF files as they are found: whole or cut, alone or beside other files."""

from __future__ import annotations

import json
import os
import shutil
import struct

import encoder_models
import pytest

from pipeline.config import EncoderConfig
from pipeline.encoders import describe
from pipeline.encoders.decoders import gguf as ours
from pipeline.encoders.decoders.gguf import loadable, read_gguf
from pipeline.encoders.decoders.loading import load_decoder
from pipeline.errors import EncoderError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("gguf")
    return encoder_models.write_gguf(encoder_models.tiny_decoder(root / "model"), root / "tiny.gguf")


@pytest.mark.parametrize("missing", [1, 1000])
def test_a_file_cut_within_its_tensors_says_so(whole, tmp_path, missing):
    content = whole.read_bytes()
    file = tmp_path / "cut.gguf"
    file.write_bytes(content[:-missing])

    assert read_gguf(whole).weights == (whole,)
    with pytest.raises(
        EncoderError, match=rf"has {len(content) - missing:,} bytes.*reach to {len(content):,}"
    ):
        read_gguf(file)


def header(*pairs):
    """A file without tensors, and these pairs: a key, the number of a type, and a value's bytes."""
    said = b"".join(
        struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value for key, kind, value in pairs
    )
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + said


@pytest.mark.parametrize(
    "content",
    [
        header((b"deep", 9, struct.pack("<IQ", 9, 1) * 5000)),
        header((b"general.alignment", 6, struct.pack("<f", float("inf")))),
        header((b"general.alignment", 5, struct.pack("<i", -32))),
    ],
)
def test_a_header_that_no_writer_makes_is_refused(tmp_path, content):
    file = tmp_path / "odd.gguf"
    file.write_bytes(content)
    with pytest.raises(EncoderError, match="cannot be read"):
        read_gguf(file)


def test_what_lies_beside_a_file_says_nothing_about_it(whole, tmp_path):
    file = tmp_path / "tiny.gguf"
    shutil.copy(whole, file)
    config = EncoderConfig(model=str(file), cache=str(tmp_path / "cache"))
    before = describe(config)
    strays = {
        "tokenizer_config.json": {"model_max_length": 8, "tokenizer_class": "BertTokenizer"},
        "adapter_config.json": {"peft_type": "LORA"},
    }
    for name, settings in strays.items():
        (tmp_path / name).write_text(json.dumps(settings))

    assert describe(config) == before
    assert before.max_tokens == 96
    with loadable(read_gguf(file)) as (folder, said):
        assert os.listdir(folder) == ["tiny.gguf"]
        assert said == {"gguf_file": "tiny.gguf"}
    assert load_decoder(read_gguf(file)).config.num_hidden_layers == 4


def test_the_sizes_of_tensors_are_those_of_the_formats_own_library():
    from gguf.constants import GGML_QUANT_SIZES

    known = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}

    assert {kind: known[kind] for kind in ours._BLOCKS} == ours._BLOCKS
