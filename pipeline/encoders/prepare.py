"""The cache of exported encoders: one folder a version, made once, behind the parity gate."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.codes import Binarizer, load_codes
from pipeline.config import EncoderConfig
from pipeline.encoders.building import building_beside, lock, put_in_place
from pipeline.encoders.decoders.reading import read_model
from pipeline.encoders.decoders.spec import DecoderSpec, as_encoder
from pipeline.encoders.decoders.wording import Wording, leave_out, word, worded
from pipeline.encoders.describe import cache_folder, codes_folder, describe, tokenizer_definition
from pipeline.encoders.elastic import sliced
from pipeline.encoders.exported import (
    GRAPH,
    LAYOUT,
    OUTPUT,
    RAW,
    STATES,
    TOKENIZER,
    is_exported,
    is_whole,
    read_manifest,
)
from pipeline.encoders.folder import ModelFolder, read_json
from pipeline.encoders.hashes import write_whole
from pipeline.encoders.locate import locate
from pipeline.encoders.parity import Figures, Inputs, Run, check_parity, probes
from pipeline.encoders.runtime import open_session
from pipeline.encoders.spec import EncoderSpec
from pipeline.errors import EncoderError, UsageError
from pipeline.schemas import Observer, Progress
from pipeline.tokens import TEXT, Tokenizer, load_tokenizer

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
    """Return the folder with the encoder's graph and tokenizer; export it into the cache the first time.

    Codes are in the graph where a row of it gives a text's vector; else the graph is the plain encoder's.

    Crash-safe: an entry appears whole, by a rename, and only once it has passed the gate; two builders on one
    machine build once. A damaged entry is built again. An encoder that was exported lies ready where it is. Raises
    EncoderError, ParityError with the gate's figures.
    """
    if spec.codes and spec.row != "text":
        return prepare(spec.plain, config.model_copy(update={"codes": ""}))
    if spec.codes is None and is_exported(Path(spec.source)):
        return Path(spec.source)
    return in_cache(config, spec.version, lambda entry: build(spec, entry, _maker(spec, config)))


def in_cache(config: EncoderConfig, name: str, make: Callable[[Path], None]) -> Path:
    """Return the cache's entry of this name, after `make` of its path where there is none, or a damaged one.

    Raises EncoderError where the cache cannot be written.
    """
    cache = cache_folder(config)
    entry = cache / name
    if is_whole(entry):
        return entry
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with lock(cache / f".{name}.lock"):
            if not is_whole(entry):
                shutil.rmtree(entry, ignore_errors=True)
                make(entry)
    except OSError as error:
        raise EncoderError(
            f"the encoder cache {cache} cannot be written: {error}",
            "A folder we may write, with room for the model",
            "Set encoder.cache, or free some space",
        ) from error
    return entry


def export(config: EncoderConfig, out: Path, observe: Observer = lambda _: None) -> dict[str, Any]:
    """Write the encoder of these settings, without codes, to a folder of its own; returns its manifest.

    Crash-safe: the folder appears whole, by a rename, once it has passed the gate; one that is there already is left
    as it is, and is an error unless it is this encoder. Raises what `prepare` raises.
    """
    config = config.model_copy(update={"codes": ""})
    spec = describe(config)
    if is_exported(Path(spec.source)):
        raise UsageError(
            f"{spec.source} is an exported encoder already",
            "A model's folder or id",
            "Copy the folder as it is",
        )
    write_out(spec, out, _maker(spec, config, observe))
    return read_manifest(out)


def write_out(spec: EncoderSpec, out: Path, make: Callable[[Path], dict[str, Any]]) -> None:
    """Build an encoder in the folder `out` unless it lies there; raises UsageError where something else does."""
    out = out.resolve()  # a link to a folder cannot be replaced by one
    if _lies_at(spec, out):
        return
    check_out(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        build(spec, out, make)
    except OSError as error:
        if _lies_at(spec, out):  # another export was quicker
            return
        raise EncoderError(
            f"{out} cannot be written: {error}",
            "A folder we may write, with room for the model",
            "Check --out",
        ) from error


def _lies_at(spec: EncoderSpec, out: Path) -> bool:
    return is_whole(out) and read_manifest(out)["version"] == spec.version


def check_out(out: Path) -> None:
    """Raise UsageError where something is in the folder already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is there and is not empty", "A new folder", "Choose another --out")


def model_of(spec: EncoderSpec) -> ModelFolder:
    """The files of the model that an encoder is made from, with the head that the spec asks for."""
    return sliced(as_encoder(read_model(locate(spec.source).folder), spec.decoder), spec.dims)


def _maker(
    spec: EncoderSpec, config: EncoderConfig, observe: Observer = lambda _: None
) -> Callable[[Path], dict[str, Any]]:
    """What writes this encoder's files into a folder."""
    if spec.codes:
        return lambda building: _export_coded(spec, config, building)
    return lambda building: _export(spec, config, building, observe)


def build(spec: EncoderSpec, entry: Path, make: Callable[[Path], dict[str, Any]]) -> None:
    """Let `make` write an encoder's files into a folder beside the entry's place, behind its gate; rename that.

    `make` returns what the manifest says beside the spec.
    """
    with building_beside(entry) as building:
        said = make(building)
        manifest = {
            "layout": LAYOUT,
            "version": spec.version,
            "spec": asdict(spec),
            **said,
            "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        }
        put_in_place(building, manifest, entry)


def check_source(spec: EncoderSpec, config: EncoderConfig) -> None:
    """Raise EncoderError where the model's files, here and now, make another encoder than this."""
    here = describe(EncoderConfig.model_validate(config.model_dump() | spec.settings))
    if here.version != spec.version:
        raise EncoderError(
            f"the files of model {spec.source!r} on this machine make encoder version {here.version}",
            f"The files that were described, version {spec.version}",
            "Give every machine the same files, or wait until the model's folder is no longer changing",
        )


def write_tokenizer(folder: ModelFolder, decoder: DecoderSpec | None, file: Path) -> Wording | None:
    """Write tokenizer.json; returns what it puts around texts where the model is a language model."""
    from pipeline.encoders.stock import convert_tokenizer

    source = folder.tokenizer[0]
    if source.name != TOKENIZER:
        convert_tokenizer(folder, file)
        source = file
    definition = tokenizer_definition(source, folder.lowercase)
    wording = word(definition, decoder, folder.config) if decoder else None
    if wording:
        definition = worded(definition, wording)
    write_whole(file, [json.dumps(definition, ensure_ascii=False).encode("utf-8")])
    return wording


def _wording(folder: ModelFolder, spec: EncoderSpec, file: Path) -> Wording | None:
    """Write tokenizer.json; returns what a language model's manifest says of its prompts."""
    wording = write_tokenizer(folder, spec.decoder, file)
    if wording is None or folder.head.trained is None or folder.head.trained.prompt:
        return wording
    prompts = (spec.document_prompt, spec.query_prompt)
    return replace(wording, left_out=leave_out(read_json(file), prompts))


def check_room(tokenizer: Tokenizer, most: int) -> None:
    """Raise UsageError where a row of `most` tokens has no place for a text beside the prompt."""
    taken = tokenizer.special_tokens
    if taken >= most:
        raise UsageError(
            f"special tokens and prompt of {taken} tokens, and a row of the model takes {most}",
            "Room for a text: of that alone something may be cut",
            f"Shorten the prompt, or set encoder.max_tokens above {taken} if the model allows",
        )


def _export(spec: EncoderSpec, config: EncoderConfig, building: Path, observe: Observer) -> dict[str, Any]:
    """Write tokenizer and graph, and hold the graph to the model before and after onnxruntime's optimisations.

    Returns what the manifest says beside the spec.
    """
    from pipeline.encoders.decoders.magnitudes import large_values
    from pipeline.encoders.exporting import from_torch, save_graph
    from pipeline.encoders.fp16 import to_fp16
    from pipeline.encoders.graph import from_graph
    from pipeline.encoders.head import append_head
    from pipeline.encoders.int8 import to_int8

    check_source(spec, config)
    folder = model_of(spec)
    wording = _wording(folder, spec, building / TOKENIZER)
    for prompt in (spec.document_prompt, spec.query_prompt):
        check_room(load_tokenizer(building / TOKENIZER, prompt), spec.longest_row)
    inputs = probe(load_tokenizer(building / TOKENIZER), folder.vocabulary, folder.pad_id, spec)
    observe(Progress("exporting the model"))
    if folder.format == "onnx":
        graph, states, reference = from_graph(folder, inputs)
    else:
        graph, states, reference = from_torch(folder, spec, inputs, wording)
    if spec.precision == "fp16":
        to_fp16(graph, large_values(graph, inputs) if spec.decoder else ())
    elif spec.precision == "int8":
        to_int8(graph, inputs)
    append_head(graph, states, folder.head, output_beside(spec), wording.left_out if wording else ())
    save_graph(graph, building / GRAPH)
    observe(Progress("comparing with the model"))
    figures = check_graph(building / GRAPH, "graph", spec, reference, inputs)
    check_source(spec, config)  # files that changed while they were read would have passed the gate, too
    said = {"pad_id": folder.pad_id, "vocabulary": folder.vocabulary, "parity": _as_json(figures)}
    return said | ({"wording": asdict(wording)} if wording else {})


def check_graph(
    file: Path, what: str, spec: EncoderSpec, reference: Sequence[NDArray[np.floating]], inputs: Inputs
) -> dict[str, Figures]:
    """Hold a graph, as it is written and as it runs, to the model's vectors by each output that the encoder reads.

    Raises ParityError with the figures.
    """
    figures = {}
    for name, optimise in (("exported", False), ("optimised", True)):
        session = open_session(file, "cpu", optimise=optimise)
        for output, run in runs_of(session, spec).items():
            figures[name + output] = check_parity(
                f"the {name} {what}{output}", spec.precision, reference, run, inputs
            )
    return figures


def runs_of(session: Any, spec: EncoderSpec) -> dict[str, Run]:  # noqa: ANN401 - an InferenceSession
    """Whole texts' vectors by each output that the encoder reads, by what is said of it: "" for the vectors' own."""
    beside = output_beside(spec)
    if not beside:
        return {"": as_run(session)}
    given = as_run(session, (beside,))

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.floating]:
        found = given(ids, mask)
        if beside == STATES:
            found = np.einsum("nlh,nl->nh", found, mask) / mask.sum(axis=1, keepdims=True)
            found = found[:, : spec.dims]
        return found / np.linalg.norm(found, axis=1, keepdims=True) if spec.normalised else found

    return {"": as_run(session), f", {beside}": run}


def output_beside(spec: EncoderSpec) -> str:
    """The output that the graph has beside the vectors; "" for none."""
    if spec.row == "text":
        return ""
    return STATES if spec.row == "document" else RAW


def _export_coded(spec: EncoderSpec, config: EncoderConfig, building: Path) -> dict[str, Any]:
    """Put the binarizer behind the plain encoder's graph, which is prepared first."""
    from pipeline.encoders.coded import add_binarizer

    prepared = prepare(spec.plain, config.model_copy(update={"codes": ""}))
    binarizer = load_binarizer(spec, config)
    shutil.copyfile(prepared / TOKENIZER, building / TOKENIZER)
    plain = read_manifest(prepared)
    inputs = probe(load_tokenizer(building / TOKENIZER), plain["vocabulary"], plain["pad_id"], spec)
    figures = add_binarizer(prepared / GRAPH, binarizer, building / GRAPH, inputs)
    return {"pad_id": plain["pad_id"], "vocabulary": plain["vocabulary"], "parity": _as_json(figures)}


def load_binarizer(spec: EncoderSpec, config: EncoderConfig) -> Binarizer:
    """What makes an encoder's codes. Raises EncoderError where the folder holds others than were described."""
    binarizer = load_codes(codes_folder(config), spec.plain.version)
    if spec.plain.coded(binarizer) != spec:
        raise EncoderError(
            f"the codes in {codes_folder(config)} are not those that were described",
            "A folder that stays as it is",
            "Run again",
        )
    return binarizer


def _as_json(figures: dict[str, Figures]) -> dict[str, Any]:
    return {name: asdict(measured) for name, measured in figures.items()}


def probe(tokenizer: Tokenizer, vocabulary: int, pad_id: int, spec: EncoderSpec) -> Inputs:
    """The gate's inputs for an encoder: ordinary text, random tokens, and lengths about the model's own window."""
    samples = [tokenizer.encode(text) for text in _SAMPLES]
    if spec.decoder and spec.query_prompt:  # which may be left out of the mean
        prompt = tokenizer.tokenize(spec.query_prompt.partition(TEXT)[0]).ids
        asked = [np.concatenate([prompt, tokenizer.tokenize(text).ids]) for text in _SAMPLES[:2]]
        samples += [tokenizer.model_input(ids) for ids in asked]
    most = vocabulary or 1 + max(int(sample.max()) for sample in samples)
    window = spec.long.window if spec.long and spec.long.by_length else 0
    return probes(samples, most, pad_id, spec.longest_row, window)


def as_run(session: Any, outputs: tuple[str, ...] = (OUTPUT,)) -> Run:  # noqa: ANN401 - an InferenceSession
    """A session as a function of input ids and attention mask int64[n, length]; several outputs side by side."""

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.floating]:
        found = session.run(list(outputs), {"input_ids": ids, "attention_mask": mask})
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    return run
