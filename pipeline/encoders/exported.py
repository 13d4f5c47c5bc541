"""An exported encoder's folder: graph, tokenizer, and a manifest that holds its whole spec.

An entry of the cache is one, and what `headwater encoders export` writes is one that may be moved and given to others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import EncoderConfig
from pipeline.encoders.spec import EncoderSpec
from pipeline.errors import EncoderError, UsageError

GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"
MANIFEST = "manifest.json"
# What the graph gives: vectors, and where texts take several rows, vectors before normalisation or token states. An
# output named like a value inside the graph fails to load; no exporter makes these names.
OUTPUT = "sentence_embedding"
RAW = "raw_embedding"
STATES = "token_states"
# Raised when the way a graph is made changes: entries of the cache made another way are made again. Not part of a
# version, as the gate holds vectors to the model's own.
LAYOUT = 2


def exit_output(place: int) -> str:
    """The name of the vectors of the exit at this place, in a graph that gives those of several."""
    return f"{OUTPUT}.{place}" if place else OUTPUT


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an exported encoder; {} where it cannot be read."""
    try:
        value = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def is_exported(folder: Path) -> bool:
    """Whether a folder is an exported encoder and no model."""
    return {"layout", "spec", "version"} <= set(read_manifest(folder))


def is_whole(folder: Path) -> bool:
    """Whether all files of an exported encoder have the sizes that its manifest says."""
    manifest = read_manifest(folder)
    files = manifest.get("files")
    if (
        manifest.get("layout") != LAYOUT
        or not isinstance(files, dict)
        or not {GRAPH, TOKENIZER} <= set(files)
    ):
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items()
    )


def read_exported(folder: Path) -> EncoderSpec:
    """The spec of an exported encoder, with its folder as the source. Raises EncoderError where it is damaged."""
    manifest = read_manifest(folder)
    if manifest["layout"] != LAYOUT:
        raise EncoderError(
            f"the exported encoder {folder} is of layout {manifest['layout']!r}",
            f"Layout {LAYOUT}, as this version of headwater writes it",
            "Export the encoder again: headwater encoders export",
        )
    try:
        spec = EncoderSpec.read(manifest["spec"], str(folder))
        if manifest["spec"].get("codes"):
            raise ValueError("an encoder with codes")
        if not {"pad_id", "vocabulary"} <= set(manifest):
            raise ValueError("no pad_id or vocabulary")
        if spec.version != manifest["version"]:
            raise ValueError(f"its spec is that of version {spec.version}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EncoderError(
            f"the exported encoder {folder} cannot be used: {error!r}",
            f"A {MANIFEST} as this version of headwater wrote it",
            "Export the encoder again: headwater encoders export",
        ) from None
    if not is_whole(folder):
        raise EncoderError(
            f"the exported encoder {folder} is damaged: a file is missing or has another size than {MANIFEST} says",
            f"{GRAPH}, {TOKENIZER} and {MANIFEST} as they were exported",
            "Copy the folder again, or export the encoder again: headwater encoders export",
        )
    return spec


def check_settings(spec: EncoderSpec, config: EncoderConfig) -> None:
    """Raise UsageError where the settings ask for something else than what was exported.

    A setting at its default asks for nothing: configuration files list them all.
    """
    sections = set(spec.settings) - {"model"}
    asked = _by_key(config.model_dump(include=sections))
    defaults = _by_key(EncoderConfig().model_dump(include=sections))
    for name, value in (defaults | _by_key(spec.settings)).items():
        if name in asked and asked[name] not in (value, defaults[name]):
            raise UsageError(
                f"encoder.{name} = {asked[name]!r}, and {spec.source} was exported with {value!r}",
                "An exported encoder as it is",
                f"Leave encoder.{name} out, or export the model with it into another folder",
            )


def _by_key(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without their sections: `decoder.prompt` for the prompt in the section `decoder`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        section = value if isinstance(value, Mapping) else {}
        flat |= {f"{name}.{key}": inner for key, inner in section.items()}
        flat |= {} if isinstance(value, Mapping) else {name: value}
    return flat
