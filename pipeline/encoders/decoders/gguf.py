"""GGUF files: what their header says of the model, read as data, without any library; no weight is looked at.

Layout: the format's specification, version 2 and 3 (little-endian): magic, version, counts, key-value pairs, the table
of tensors, and behind the next multiple of the alignment their values, each at its offset.
"""

from __future__ import annotations

import importlib.util
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from pipeline.encoders.folder import Head, ModelFolder
from pipeline.errors import EncoderError

SUFFIX = ".gguf"
_NEEDED = ("gguf", "accelerate")
_MAGIC = b"GGUF"
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Longer strings and longer lists are skipped or refused: a vocabulary is nothing that is needed here.
_LONGEST = 1 << 26
_ALIGNMENT = "general.alignment"
_USUAL_ALIGNMENT = 32
# Of the types that a tensor may have, by number: values in a block, and bytes of it.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip
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
            values, needed = _header(stream)
    except (OSError, ValueError, KeyError, struct.error, RecursionError, OverflowError) as error:
        raise EncoderError(
            f"{file} cannot be read: {error}", "A whole GGUF file of version 2 or 3", "Fetch the model again"
        ) from None
    if (size := file.stat().st_size) < needed:
        raise EncoderError(
            f"{file} has {size:,} bytes, and its tensors reach to {needed:,}",
            "A whole GGUF file: a copy or a download ended early",
            "Fetch the model again",
        )
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


@contextmanager
def loadable(folder: ModelFolder) -> Iterator[tuple[str, dict[str, str]]]:
    """The folder for transformers' loaders, and what they want to know beside it; a GGUF file is in it alone.

    They would take settings of other models that lie beside it: a tokenizer_config.json adds special tokens.
    """
    if folder.format != "gguf":
        yield str(folder.transformer), {}
        return
    file = folder.weights[0]
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise EncoderError(
            f"{file} is a GGUF file, and this Python has no {' and no '.join(missing)}",
            "The packages with which transformers reads such files",
            "pip install 'headwater[gguf]'",
        )
    with TemporaryDirectory(prefix="headwater-") as alone:
        (Path(alone) / file.name).symlink_to(file.resolve())
        yield alone, {"gguf_file": file.name}


def _header(stream: BinaryIO) -> tuple[dict[str, Any], int]:
    """The key-value pairs, of a list its length alone, and how many bytes a file with these tensors has at least."""
    if stream.read(4) != _MAGIC:
        raise ValueError("it does not begin as a GGUF file")
    version, tensors, count = struct.unpack("<IQQ", _take(stream, 20))
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    values = {_string(stream): _value(stream, _number(stream, 4)) for _ in range(count)}
    ends = [_tensor_end(stream) for _ in range(tensors)]
    alignment = int(values.get(_ALIGNMENT) or _USUAL_ALIGNMENT)
    if alignment < 1:
        raise ValueError(f"an alignment of {alignment}")
    return values, -(-stream.tell() // alignment) * alignment + max(ends) if ends else stream.tell()


def _tensor_end(stream: BinaryIO) -> int:
    """Where the values of the table's next tensor end, from the first of all; where they begin, for an unknown type."""
    _string(stream)
    shape = struct.unpack(f"<{(dimensions := _number(stream, 4))}Q", _take(stream, 8 * dimensions))
    kind, offset = struct.unpack("<IQ", _take(stream, 12))
    values, size = _BLOCKS.get(kind, (1, 0))
    end: int = offset + math.prod(shape) // values * size
    return end


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
