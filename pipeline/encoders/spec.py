"""EncoderSpec: everything that changes a vector; its hash is the encoder's version."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline.codes import Binarizer, CodesSpec, load_codes
from pipeline.config import EncoderConfig
from pipeline.encoders.folder import Dense, ModelFolder, read_folder, read_json
from pipeline.encoders.locate import locate
from pipeline.errors import EncoderError, UsageError

# In config.json, but without a say in what a forward pass computes.
_VOLATILE = {
    "_name_or_path",
    "architectures",
    "dtype",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
# Count positions from the padding token's id on, so that many rows of the table are never used.
_OFFSET_POSITIONS = {
    "camembert",
    "longformer",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
}
_POSITIONS = ("max_position_embeddings", "n_positions")
_HIDDEN = ("hidden_size", "d_model", "dim", "n_embd")
# transformers writes this (or more) where a tokenizer has no limit.
_NO_LIMIT = 1_000_000
# Neither the model nor its tokenizer names a limit: what most encoders of text were trained on.
_FALLBACK_TOKENS = 512

# How the graph of a lower precision is made: raise it where the numbers change, as they are then another encoder's.
_SCHEMES = {"fp16": 1, "int8": 1}


@dataclass(frozen=True)
class EncoderSpec:
    """What makes an encoder's vectors; equal specs make equal vectors. Picklable, holds no path of this machine.

    source: what the user named, a folder as an absolute path; not part of the version.
    weights, tokenizer, config: SHA-256 of the weights' files, the tokenizer, and the architecture's settings.
    modules: pooling modes, then dense layers (with their hash) and "normalize", in order.
    max_tokens: the longest input, special tokens and prompt included.
    dims: length of a vector.
    codes: what vectors become before they are stored; None: they are stored as they are.
    """

    source: str
    format: Literal["safetensors", "onnx"]
    weights: str
    tokenizer: str
    config: str
    modules: tuple[str, ...]
    document_prompt: str
    query_prompt: str
    max_tokens: int
    dims: int
    precision: Literal["fp32", "fp16", "int8"]
    codes: CodesSpec | None = None

    @cached_property
    def version(self) -> str:
        """64 hex digits: the SHA-256 of the canonical JSON of all fields but `source`."""
        fields = {name: value for name, value in asdict(self).items() if name != "source"}
        if self.codes is None:
            del fields["codes"]
        if self.precision in _SCHEMES:
            fields["scheme"] = _SCHEMES[self.precision]
        return _hash_json(fields)

    @property
    def plain(self) -> EncoderSpec:
        """The same encoder without codes."""
        return replace(self, codes=None)

    def coded(self, binarizer: Binarizer) -> EncoderSpec:
        """Put a binarizer behind this encoder; raises EncoderError where that takes other vectors."""
        if binarizer.spec.input_dims != self.dims:
            raise EncoderError(
                f"codes for vectors of {binarizer.spec.input_dims} dimensions, and {self.source!r} makes {self.dims}",
                "The encoder that the codes were trained with",
                "Use that encoder, or train codes for this one",
            )
        return replace(self, codes=CodesSpec.of(binarizer))


def describe(config: EncoderConfig) -> EncoderSpec:
    """Find the model and read its spec; loads neither torch nor transformers nor onnx.

    Safe at any time: writes nothing but remembered hashes of weight files in the cache. Raises EncoderError for a
    model that cannot be had or used and for codes that are damaged or another encoder's, UsageError for a setting that
    the model does not allow.
    """
    located = locate(config.model)
    folder = read_folder(located.folder)
    remembered = cache_folder(config) / "hashes"
    modules = [*folder.head.pooling]
    for layer in folder.head.layers:
        modules.append(_dense_name(layer, remembered) if isinstance(layer, Dense) else layer)
    spec = EncoderSpec(
        source=located.source,
        format=folder.format,
        weights=_hash_json([_hash_file(file, remembered) for file in folder.weights]),
        tokenizer=_hash_tokenizer(folder),
        config=_hash_json({key: value for key, value in folder.config.items() if key not in _VOLATILE}),
        modules=tuple(modules),
        document_prompt=_prompt(folder, config.document_prompt, ("document", "passage", "corpus")),
        query_prompt=_prompt(folder, config.query_prompt, ("query",)),
        max_tokens=_max_tokens(folder, config.max_tokens),
        dims=_dims(folder),
        precision=config.precision,
    )
    return spec.coded(load_codes(codes_folder(config), spec.version)) if config.codes else spec


def codes_folder(config: EncoderConfig) -> Path:
    """The codes folder that the settings name, as an absolute path."""
    return Path(config.codes).expanduser().resolve()


def cache_folder(config: EncoderConfig) -> Path:
    """Where exported encoders are kept: `encoder.cache`, else the user's cache folder."""
    if config.cache:
        return Path(config.cache).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "headwater" / "encoders"


def tokenizer_definition(file: Path, lowercase: bool) -> dict[str, Any]:
    """A tokenizer.json without its truncation and padding (MiniLM's cuts at 128), lower-casing where the model does."""
    definition = read_json(file)
    definition["truncation"] = definition["padding"] = None
    if lowercase:
        given = definition.get("normalizer")
        steps = [{"type": "Lowercase"}, *([given] if given else [])]
        definition["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return definition


def positions(folder: ModelFolder) -> int | None:
    """How many tokens the model has positions for; None where positions are relative and unbounded."""
    config = folder.config.get("text_config") or folder.config
    found = next((config[key] for key in _POSITIONS if isinstance(config.get(key), int)), 0)
    if found <= 0 or config.get("position_embedding_type") == "alibi":
        return None
    return int(found) - (folder.pad_id + 1 if config.get("model_type") in _OFFSET_POSITIONS else 0)


def _max_tokens(folder: ModelFolder, asked: int) -> int:
    limit = positions(folder)
    if asked:
        if limit and asked > limit:
            raise UsageError(
                f"encoder.max_tokens = {asked}, and the model has positions for {limit} tokens",
                f"At most {limit}",
                "Lower it, or leave it out to take what the model's configuration says",
            )
        return asked
    tokenizer = read_json(folder.transformer / "tokenizer_config.json", missing_ok=True)
    said = [folder.settings.get("max_seq_length"), tokenizer.get("model_max_length")]
    chosen = next((int(n) for n in said if isinstance(n, (int, float)) and 0 < n < _NO_LIMIT), None)
    return min(chosen or limit or _FALLBACK_TOKENS, limit or _NO_LIMIT)


def _dims(folder: ModelFolder) -> int:
    for layer in reversed(folder.head.layers):
        if isinstance(layer, Dense):
            return layer.out_features
    config = folder.config.get("text_config") or folder.config
    hidden = next((config[key] for key in _HIDDEN if isinstance(config.get(key), int)), None)
    if hidden is None:
        raise EncoderError(
            f"{folder.root} names no hidden size in config.json",
            f"One of {', '.join(_HIDDEN)}",
            "Choose another model",
        )
    return int(hidden) * len(folder.head.pooling)


def _prompt(folder: ModelFolder, asked: str | None, names: tuple[str, ...]) -> str:
    """What the user set, else the model's own prompt of the first of these names, else its default prompt."""
    if asked is not None:
        return asked
    names = (*names, folder.default_prompt)
    return next((folder.prompts[name] for name in names if name in folder.prompts), "")


def _hash_tokenizer(folder: ModelFolder) -> str:
    if folder.tokenizer[0].name == "tokenizer.json":
        return _hash_json(tokenizer_definition(folder.tokenizer[0], folder.lowercase))
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.tokenizer}
    return _hash_json([files, folder.lowercase])


def _dense_name(layer: Dense, remembered: Path) -> str:
    settings = {key: value for key, value in asdict(layer).items() if key != "file"}
    return f"dense:{_hash_json([settings, _hash_file(layer.file, remembered)])}"


def _hash_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def _hash_file(file: Path, remembered: Path) -> str:
    """SHA-256 of a file's content, remembered by path, size and time of change: a search starts without reading it."""
    stat = file.stat()
    note = remembered / _hash_json([str(file.resolve()), stat.st_size, stat.st_mtime_ns])
    with suppress(OSError):
        known = note.read_text(encoding="ascii")
        if len(known) == 64:
            return known
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    with suppress(OSError):  # a read-only cache costs the hash each time, nothing else
        write_whole(note, [digest.encode("ascii")])
    return digest


def write_whole(file: Path, parts: Iterable[bytes]) -> None:
    """Write a file beside its place and rename it: a reader sees all of it or none, whenever we die."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name[:16]}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.writelines(parts)
        os.replace(name, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
