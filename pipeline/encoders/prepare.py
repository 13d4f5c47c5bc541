"""The cache of exported encoders: one folder a version, made once, behind the parity gate."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.codes import load_codes
from pipeline.config import EncoderConfig
from pipeline.encoders.folder import ModelFolder, read_folder
from pipeline.encoders.locate import locate
from pipeline.encoders.parity import Figures, Inputs, Run, check_parity, probes
from pipeline.encoders.runtime import open_session
from pipeline.encoders.spec import (
    EncoderSpec,
    cache_folder,
    codes_folder,
    describe,
    tokenizer_definition,
    write_whole,
)
from pipeline.errors import EncoderError
from pipeline.tokens import Tokenizer, load_tokenizer

GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"
MANIFEST = "manifest.json"
# Raised when the way a graph is made changes: entries made another way are made again. Not part of a version, as
# the gate holds vectors to the model's own.
_LAYOUT = 1
_LIBRARIES = ("torch", "transformers", "sentence-transformers", "onnx", "onnxscript", "numpy")
_SAMPLES = (
    "Where does the water go?",
    "The river rises in the hills north of the town, where rain falls on two days out of three.",
    "In 1854 John Snow marked 578 deaths on a map of Soho and found them around a single pump; its handle was "
    "taken off on the 8th of September, and the epidemic, already past its height, came to an end.",
    "def area(width: float, height: float) -> float:\n    return width * height  # square metres",
    "Ein Fluss, une rivière, un río, 川, река, ποταμός: 7 words for the same thing.",
    "The board approved revenue of $4.2 million for the third quarter, up 12% on the year before, and expects "
    "margins to stay between 31 and 33 percent while two plants are rebuilt; the dividend is unchanged. " * 4,
)


def prepare(spec: EncoderSpec, config: EncoderConfig) -> Path:
    """Return the folder with the encoder's graph and tokenizer; export it the first time.

    Crash-safe: an entry appears whole, by a rename, and only once it has passed the gate; two builders on one
    machine build once. A damaged entry is built again. Raises EncoderError, ParityError with the gate's figures.
    """
    cache = cache_folder(config)
    entry = cache / spec.version
    if _is_whole(entry):
        return entry
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f".{spec.version}.lock"):
            if not _is_whole(entry):
                _build(spec, config, entry)
    except OSError as error:
        raise EncoderError(
            f"the encoder cache {cache} cannot be written: {error}",
            f"A folder we may write, with room for the model ({spec.source})",
            "Set encoder.cache, or free some space",
        ) from error
    return entry


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a cache entry; {} where it cannot be read."""
    try:
        value = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_whole(entry: Path) -> bool:
    """Whether all files of an entry have the sizes that its manifest says."""
    manifest = read_manifest(entry)
    files = manifest.get("files")
    if manifest.get("layout") != _LAYOUT or not isinstance(files, dict) or GRAPH not in files:
        return False
    return all(
        (entry / name).is_file() and (entry / name).stat().st_size == size for name, size in files.items()
    )


def _build(spec: EncoderSpec, config: EncoderConfig, entry: Path) -> None:
    """Export into a folder beside the entry's place, pass the gate, rename."""
    building = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".building."))
    try:
        folder = read_folder(locate(spec.source).folder)
        if spec.codes is None:
            _check_source(spec, config)
            _write_tokenizer(folder, building / TOKENIZER)
            figures = _export(spec, folder, building)
        else:
            figures = _export_coded(spec, folder, config, building)
        manifest = {
            "layout": _LAYOUT,
            "version": spec.version,
            "spec": asdict(spec),
            "pad_id": folder.pad_id,
            "parity": {name: asdict(measured) for name, measured in figures.items()},
            "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
            "files": {file.name: file.stat().st_size for file in building.iterdir()},
        }
        write_whole(building / MANIFEST, [json.dumps(manifest, indent=2).encode("utf-8")])
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one
        os.chmod(building, 0o755)  # a cache may be shared; temporary folders are not
        os.rename(building, entry)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _check_source(spec: EncoderSpec, config: EncoderConfig) -> None:
    """Refuse to export other files under this version than those that were described."""
    here = describe(config.model_copy(update=_settings_of(spec)))
    if here.version != spec.version:
        raise EncoderError(
            f"the files of model {spec.source!r} on this machine make encoder version {here.version}",
            f"The files that were described, version {spec.version}",
            "Give every machine the same files, or wait until the model's folder is no longer changing",
        )


def _settings_of(spec: EncoderSpec) -> dict[str, Any]:
    return {
        "model": spec.source,
        "precision": spec.precision,
        "max_tokens": spec.max_tokens,
        "document_prompt": spec.document_prompt,
        "query_prompt": spec.query_prompt,
    }


def _write_tokenizer(folder: ModelFolder, file: Path) -> None:
    from pipeline.encoders.export import convert_tokenizer

    source = folder.tokenizer[0]
    if source.name != TOKENIZER:
        convert_tokenizer(folder, file)
        source = file
    definition = tokenizer_definition(source, folder.lowercase)
    write_whole(file, [json.dumps(definition, ensure_ascii=False).encode("utf-8")])


def _export(spec: EncoderSpec, folder: ModelFolder, building: Path) -> dict[str, Figures]:
    """Write the graph and hold it to the model before and after onnxruntime's optimisations."""
    from pipeline.encoders.export import from_torch, save_graph
    from pipeline.encoders.fp16 import to_fp16
    from pipeline.encoders.graph import from_graph
    from pipeline.encoders.head import append_head
    from pipeline.encoders.int8 import to_int8

    tokenizer = load_tokenizer(building / TOKENIZER)
    inputs = _probes(spec, folder, tokenizer)
    make = from_graph if folder.format == "onnx" else from_torch
    graph, states, reference = make(folder, inputs)
    if spec.precision == "fp16":
        to_fp16(graph)
    elif spec.precision == "int8":
        to_int8(graph, inputs)
    append_head(graph, states, folder.head)
    save_graph(graph, building / GRAPH)
    figures = {}
    for name, optimise in (("exported", False), ("optimised", True)):
        run = as_run(open_session(building / GRAPH, "cpu", optimise=optimise))
        figures[name] = check_parity(f"the {name} graph", spec.precision, reference, run, inputs)
    return figures


def _export_coded(
    spec: EncoderSpec, folder: ModelFolder, config: EncoderConfig, building: Path
) -> dict[str, Figures]:
    """Put the binarizer behind the plain encoder's graph, which is prepared first."""
    from pipeline.encoders.coded import add_binarizer

    prepared = prepare(spec.plain, config.model_copy(update={"codes": ""}))
    binarizer = load_codes(codes_folder(config), spec.plain.version)
    if spec.coded(binarizer) != spec:
        raise EncoderError(
            f"the codes in {codes_folder(config)} are not those that were described",
            "A folder that stays as it is",
            "Run again",
        )
    shutil.copyfile(prepared / TOKENIZER, building / TOKENIZER)
    inputs = _probes(spec, folder, load_tokenizer(building / TOKENIZER))
    return add_binarizer(prepared / GRAPH, binarizer, building / GRAPH, inputs)


def _probes(spec: EncoderSpec, folder: ModelFolder, tokenizer: Tokenizer) -> Inputs:
    samples = [tokenizer.encode(text) for text in _SAMPLES]
    config = folder.config.get("text_config") or folder.config
    vocabulary = int(config.get("vocab_size", 1 + max(int(sample.max()) for sample in samples)))
    return probes(samples, vocabulary, folder.pad_id, spec.max_tokens)


def as_run(session: Any) -> Run:  # noqa: ANN401 - an onnxruntime.InferenceSession
    """A session as a function of input ids and attention mask int64[n, length]."""

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.floating]:
        vectors: NDArray[np.floating] = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return vectors

    return run


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Hold a file's lock; the system frees it when the process dies."""
    from filelock import FileLock

    with FileLock(file):
        yield
