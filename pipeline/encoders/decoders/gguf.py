"""GGUF files: what their header says of the model, read as data, without any library; no weight is looked at.

Layout: the format's specification, version 2 and 3 (little-endian): magic, version, counts, key-value pairs, tensors.
"""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.encoders.folder import Head, ModelFolder, read_folder
from pipeline.errors import EncoderError

SUFFIX = ".gguf"
_NEEDED = ("gguf", "accelerate")
_MAGIC = b"GGUF"
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Longer strings and longer lists are skipped or refused: a vocabulary is nothing that is needed here.
_LONGEST = 1 << 26
# The format's names for what config.json says.
_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "vocab_size": "vocab_size",
    "rope.freq_base": "rope_theta",
}
_TOKENS = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}


def read_model(root: Path) -> ModelFolder:
    """Read a GGUF file, a folder with one, or any other model's folder. Raises EncoderError as `read_folder` does."""
    file = find_gguf(root)
    return read_gguf(file) if file else read_folder(root)


def find_gguf(root: Path) -> Path | None:
    """The GGUF file that `root` is, or the only one in the folder that it is; None where a config.json rules.

    Raises EncoderError for a folder with several and nothing else.
    """
    if root.is_file():
        return root
    if (root / "config.json").is_file() or (root / "modules.json").is_file():
        return None
    found = sorted(root.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        raise EncoderError(
            f"{len(found)} GGUF files in {root}: {', '.join(file.name for file in found)}",
            "One checkpoint",
            f"Name the file, for example {found[0]}",
        )
    return found[0] if found else None


def read_gguf(file: Path) -> ModelFolder:
    """A GGUF file as a model's folder, whose head is yet to be said. Raises EncoderError for a damaged one."""
    try:
        with file.open("rb") as stream:
            values = _header(stream)
    except (OSError, ValueError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise EncoderError(
            f"{file} cannot be read: {error}", "A whole GGUF file of version 2 or 3", "Fetch the model again"
        ) from None
    name = str(values.get("general.architecture", ""))
    config = {ours: values[f"{name}.{key}"] for key, ours in _KEYS.items() if f"{name}.{key}" in values}
    config |= {ours: values[key] for key, ours in _TOKENS.items() if key in values}
    if "vocab_size" not in config and "tokenizer.ggml.tokens" in values:
        config["vocab_size"] = values["tokenizer.ggml.tokens"]
    if not name or "num_hidden_layers" not in config or "hidden_size" not in config:
        raise EncoderError(
            f"{file} holds no language model: architecture {name!r}",
            "A GGUF file that names its architecture, layers and hidden size",
            "Choose another file",
        )
    return ModelFolder(
        root=file.parent,
        transformer=file.parent,
        format="gguf",
        weights=(file,),
        tokenizer=(file,),
        config={"model_type": name, "architectures": [name], **config},
        settings={},
        prompts={},
        default_prompt="",
        head=Head(("mean",), ()),
    )


def gguf_file(folder: ModelFolder) -> dict[str, Any]:
    """What transformers' loaders want to know beside the folder where the model is a GGUF file."""
    if folder.format != "gguf":
        return {}
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise EncoderError(
            f"{folder.weights[0]} is a GGUF file, and {' and '.join(missing)} is not installed",
            "The packages with which transformers reads such files",
            "pip install 'headwater[gguf]'",
        )
    return {"gguf_file": folder.weights[0].name}


def _header(stream: BinaryIO) -> dict[str, Any]:
    """The key-value pairs; of a list its length alone."""
    if stream.read(4) != _MAGIC:
        raise ValueError("it does not begin as a GGUF file")
    version, _, count = struct.unpack("<IQQ", _take(stream, 20))
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    return {_string(stream): _value(stream, _number(stream, 4)) for _ in range(count)}


def _value(stream: BinaryIO, kind: int) -> Any:  # noqa: ANN401 - a number, a string, or the length of a list
    if kind == _STRING:
        return _string(stream)
    if kind != _ARRAY:
        return struct.unpack(f"<{_NUMBERS[kind]}", _take(stream, struct.calcsize(_NUMBERS[kind])))[0]
    inner, length = struct.unpack("<IQ", _take(stream, 12))
    if inner in _NUMBERS:
        _take(stream, length * struct.calcsize(_NUMBERS[inner]))
    else:
        for _ in range(length):
            _value(stream, inner)
    return length


def _string(stream: BinaryIO) -> str:
    return _take(stream, _number(stream, 8)).decode("utf-8", errors="replace")


def _number(stream: BinaryIO, size: int) -> int:
    return int.from_bytes(_take(stream, size), "little")


def _take(stream: BinaryIO, size: int) -> bytes:
    taken = stream.read(size) if size <= _LONGEST else b""
    if len(taken) != size:
        raise ValueError("it ends in the middle of its header")
    return taken
