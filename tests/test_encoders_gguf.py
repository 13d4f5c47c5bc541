"""GGUF files as they are found: whole or cut, alone or beside other files."""

from __future__ import annotations

import encoder_models
import pytest

from pipeline.encoders.decoders import gguf as ours
from pipeline.encoders.decoders.gguf import read_gguf
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


def test_the_sizes_of_tensors_are_those_of_the_formats_own_library():
    from gguf.constants import GGML_QUANT_SIZES

    known = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}

    assert {kind: known[kind] for kind in ours._BLOCKS} == ours._BLOCKS
