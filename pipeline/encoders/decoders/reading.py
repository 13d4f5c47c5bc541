"""A model's files, whatever they are: a GGUF file, an NV-Embed checkpoint, or any other model's folder."""

from __future__ import annotations

from pathlib import Path

from pipeline.encoders.decoders.gguf import find_gguf, read_gguf
from pipeline.encoders.decoders.nvembed import is_nvembed, read_nvembed
from pipeline.encoders.folder import ModelFolder, read_folder


def read_model(root: Path) -> ModelFolder:
    """Read a GGUF file, a folder with one, or any other model's folder. Raises EncoderError as `read_folder` does."""
    if file := find_gguf(root):
        return read_gguf(file)
    return read_nvembed(root) if is_nvembed(root) else read_folder(root)
