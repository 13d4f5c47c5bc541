"""From settings to an EncoderSpec: the model is found and read, none of it is run."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.codes import load_codes
from pipeline.config import EncoderConfig
from pipeline.encoders.decoders.reading import read_model
from pipeline.encoders.decoders.spec import as_encoder, describe_decoder
from pipeline.encoders.elastic import check_layers, dims_of, sliced
from pipeline.encoders.exported import check_settings, is_exported, read_exported
from pipeline.encoders.folder import Head, Layer, ModelFolder, Slice, read_json
from pipeline.encoders.hashes import hash_file, hash_json
from pipeline.encoders.locate import Located, locate
from pipeline.encoders.long import LATE, PLAIN, describe_long, methods_of
from pipeline.encoders.positions import read_positions
from pipeline.encoders.spec import EncoderSpec
from pipeline.errors import UsageError
from pipeline.tokens import TEXT

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
# transformers writes this (or more) where a tokenizer has no limit.
_NO_LIMIT = 1_000_000
# Neither the model nor its tokenizer names a limit: what most encoders of text were trained on.
_FALLBACK_TOKENS = 512


def describe(config: EncoderConfig) -> EncoderSpec:
    """Find the model and read its spec; loads neither torch nor transformers nor onnx.

    Safe at any time: writes nothing but remembered hashes of weight files in the cache. Raises EncoderError for a
    model that cannot be had or used and for codes that are damaged or another encoder's, UsageError for a setting that
    the model does not allow.
    """
    located = locate(config.model)
    if is_exported(located.folder):
        spec = read_exported(located.folder)
        check_settings(spec, config)
    else:
        spec = _describe_model(located, config)
    return spec.coded(load_codes(codes_folder(config), spec.version)) if config.codes else spec


def _describe_model(located: Located, config: EncoderConfig) -> EncoderSpec:
    folder = read_model(located.folder)
    decoder = describe_decoder(folder, config)
    folder = sliced(as_encoder(folder, decoder), config.dims)
    long, max_tokens = describe_long(folder, config, usual_tokens(folder, config))
    remembered = cache_folder(config) / "hashes"
    return EncoderSpec(
        source=located.source,
        format=folder.format,
        weights=hash_json([hash_file(file, remembered) for file in folder.weights]),
        tokenizer=_hash_tokenizer(folder, remembered),
        config=hash_json({key: value for key, value in folder.config.items() if key not in _VOLATILE}),
        modules=_modules(folder.head, remembered),
        document_prompt=document_prompt_of(folder, config),
        query_prompt=_prompt(folder, config.query_prompt, ("query",)),
        max_tokens=max_tokens,
        dims=dims_of(folder),
        precision=config.precision,
        layers=check_layers(folder, config.layers),
        long=long,
        decoder=decoder,
    )


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


def usual_tokens(folder: ModelFolder, config: EncoderConfig) -> int:
    """What the model takes by itself; as many as are asked for where that is less."""
    limit, asked = read_positions(folder).window, config.max_tokens
    if asked and config.long in (*PLAIN, LATE):
        if limit and asked > limit:
            raise UsageError(
                f"encoder.max_tokens = {asked}, and the model has positions for {limit} tokens",
                f"At most {limit}, or an encoder.long that goes beyond: "
                f"{', '.join(methods_of(folder, read_positions(folder))[len(PLAIN) :])}",
                "Lower it, or leave it out to take what the model's configuration says",
            )
        return asked
    beside = folder.transformer / "tokenizer_config.json"  # of a GGUF file it is another model's
    tokenizer = {} if folder.format == "gguf" else read_json(beside, missing_ok=True)
    said = [folder.settings.get("max_seq_length"), tokenizer.get("model_max_length")]
    chosen = next((int(n) for n in said if isinstance(n, (int, float)) and 0 < n < _NO_LIMIT), None)
    return min(chosen or limit or _FALLBACK_TOKENS, limit or _NO_LIMIT)


def document_prompt_of(folder: ModelFolder, config: EncoderConfig) -> str:
    """What goes before documents: what the user set, else the model's own."""
    return _prompt(folder, config.document_prompt, ("document", "passage", "corpus"))


def _prompt(folder: ModelFolder, asked: str | None, names: tuple[str, ...]) -> str:
    """What the user set, else the model's own prompt of the first of these names, else its default prompt."""
    if asked is not None:
        if asked.count(TEXT) > 1:
            raise UsageError(
                f"a prompt with {asked.count(TEXT)} places for the text: {asked!r}",
                f"{TEXT} once, or not at all: then the text comes behind the prompt",
                "Leave out the others",
            )
        return asked.removesuffix(TEXT)
    names = (*names, folder.default_prompt)
    return next((folder.prompts[name] for name in names if name in folder.prompts), "")


def _hash_tokenizer(folder: ModelFolder, remembered: Path) -> str:
    if folder.format == "gguf":
        return hash_file(folder.tokenizer[0], remembered)
    if folder.tokenizer[0].name == "tokenizer.json":
        return _hash_definition(folder.tokenizer[0], folder.lowercase, _content(folder.tokenizer[0]))
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.tokenizer}
    return hash_json([files, folder.lowercase])


def _content(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:  # which reading it as JSON says better
        return ""


@lru_cache(maxsize=16)
def _hash_definition(file: Path, lowercase: bool, content: str) -> str:
    """Remembered by the `content` of the file: canonical JSON takes 0.1 s a megabyte, and a run asks several times."""
    return hash_json(tokenizer_definition(file, lowercase))


def _modules(head: Head, remembered: Path) -> tuple[str, ...]:
    trained = head.trained
    weights = [hash_file(file, remembered) for file in trained.files] if trained else []
    names = [f"{trained.kind}:{hash_json([trained.heads, trained.prompt, weights])}"] if trained else []
    return (*names, *head.pooling, *(_layer_name(layer, remembered) for layer in head.layers))


def _layer_name(layer: Layer, remembered: Path) -> str:
    if isinstance(layer, Slice):
        return f"slice:{layer.dims}"
    if layer == "normalize":
        return layer
    settings = {key: value for key, value in asdict(layer).items() if key != "file"}
    return f"dense:{hash_json([settings, hash_file(layer.file, remembered)])}"
