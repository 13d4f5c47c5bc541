"""Encoders with a fitted space behind them: a sample embedded, the map fitted, its graph held to model and numpy."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config import EncoderConfig
from pipeline.encoders.checking import vectors_of
from pipeline.encoders.decoders.wording import Wording
from pipeline.encoders.describe import describe
from pipeline.encoders.exported import GRAPH, MANIFEST, TOKENIZER, is_exported, read_manifest
from pipeline.encoders.locate import locate
from pipeline.encoders.pieces import cut
from pipeline.encoders.prepare import check_graph, check_out, prepare, probe, write_out
from pipeline.encoders.session import Encoder
from pipeline.encoders.space import SPACE, Space, check_sample, fit, has_space, read_kind, save_space
from pipeline.encoders.spec import EncoderSpec
from pipeline.errors import UsageError
from pipeline.schemas import Observer, Progress
from pipeline.tokens import load_tokenizer

_TEXTS_AT_ONCE = 256


def export_spaced(
    config: EncoderConfig,
    out: Path,
    kind: str,
    texts: Sequence[str],
    observe: Observer = lambda _: None,
) -> dict[str, Any]:
    """Write the encoder of these settings with a space behind it, fitted on texts, to a folder; returns its manifest.

    Crash-safe as `export` is. `config.model` may be an exported encoder: its settings stay as they are, and its model
    is needed where it was. Texts are embedded as documents, in pieces where they are too long; equal ones count once.
    Raises UsageError for a sample that is too small, and what `prepare` raises.
    """
    read_kind(kind)
    config = config.model_copy(update={"codes": ""})
    spec = describe(config)
    if has_space(spec.modules):
        raise UsageError(
            f"{spec.source} has a fitted space already", "An encoder without one", "Give its model"
        )
    if not is_exported(out):
        check_out(out)
    texts = list(dict.fromkeys(text for text in texts if text.strip()))
    check_sample(kind, spec.dims, len(texts))
    observe(Progress("preparing the encoder"))
    prepared = prepare(spec, config)
    # the cache's entry may have been made of the same files at another place
    made_of = read_manifest(prepared)["spec"]["source"] if is_exported(Path(spec.source)) else spec.source
    source = locate(made_of).source
    encoder = open_raw(spec, prepared, config)
    try:
        space = fit(kind, _embed(encoder, texts, observe))
    finally:
        encoder.close()
    plain = replace(spec, source=source)
    spaced = replace(plain, modules=(*_raw(plain).modules, space.module, "normalize"), dims=space.dims)
    observe(Progress("comparing with the model"))
    write_out(spaced, out, lambda building: _write(plain, spaced, space, prepared, building))
    return read_manifest(out)


def open_raw(spec: EncoderSpec, prepared: Path, config: EncoderConfig) -> Encoder:
    """Open a prepared encoder without the normalisation at its end."""
    import onnx

    from pipeline.encoders.exporting import save_graph
    from pipeline.encoders.head import leave_raw

    with tempfile.TemporaryDirectory(prefix="headwater-") as scratch:
        folder = Path(scratch)
        for name in (TOKENIZER, MANIFEST):
            shutil.copyfile(prepared / name, folder / name)
        graph = onnx.load(str(prepared / GRAPH))
        if spec.normalised:
            leave_raw(graph)
        save_graph(graph, folder / GRAPH)
        return Encoder.open(_raw(spec), folder, config)


def _embed(encoder: Encoder, texts: Sequence[str], observe: Observer) -> NDArray[np.float32]:
    """float32[pieces, dims]: texts as documents, in pieces where they are longer than the encoder takes."""
    vectors = [np.empty((0, encoder.spec.dims), np.float32)]
    around, most = encoder.tokenizer.around, encoder.spec.max_tokens
    for at in range(0, len(texts), _TEXTS_AT_ONCE):
        block = texts[at : at + _TEXTS_AT_ONCE]
        pieces = [cut(encoder.tokenizer.encode(text), around, most) for text in block]
        owners = np.repeat(np.arange(len(pieces)), [len(each) for each in pieces])
        vectors.append(encoder.encode([piece for each in pieces for piece in each], owners))
        observe(Progress("embedding the sample", at + len(pieces), len(texts)))
    return np.concatenate(vectors)


def _raw(spec: EncoderSpec) -> EncoderSpec:
    """The same encoder without the normalisation at its end."""
    return replace(spec, modules=spec.modules[:-1]) if spec.normalised else spec


def _write(
    plain: EncoderSpec, spaced: EncoderSpec, space: Space, prepared: Path, building: Path
) -> dict[str, Any]:
    """Write graph, tokenizer and space, and hold the graph to the model; returns what the manifest says beside."""
    import onnx

    from pipeline.encoders.exporting import save_graph
    from pipeline.encoders.head import append_space, leave_raw

    shutil.copyfile(prepared / TOKENIZER, building / TOKENIZER)
    save_space(space, building / SPACE)
    graph = onnx.load(str(prepared / GRAPH))
    if plain.normalised:
        leave_raw(graph)
    append_space(graph, space)
    save_graph(graph, building / GRAPH)
    manifest = read_manifest(prepared)
    inputs = probe(load_tokenizer(building / TOKENIZER), manifest["vocabulary"], manifest["pad_id"], plain)
    reference = vectors_of(plain, inputs, space, Wording.read(manifest))
    figures = check_graph(building / GRAPH, "graph in its space", spaced, reference, inputs)
    said = {"space": {"kind": space.kind, "texts": space.texts}, "plain": asdict(plain)}
    said["parity"] = {name: asdict(measured) for name, measured in figures.items()}
    return {name: manifest[name] for name in ("pad_id", "vocabulary", "wording") if name in manifest} | said


def read_sample(file: Path, column: str) -> list[str]:
    """The texts of a column of a Parquet file, without nulls. Raises UsageError where there is none."""
    try:
        known = pq.read_schema(file).names
        if column not in known:
            raise UsageError(
                f"--sample {file} without {column!r}; its columns are {', '.join(known)}",
                "A column of texts",
                "Name it with --text",
            )
        texts = pq.read_table(file, columns=[column])[column].drop_null()
    except (OSError, pa.ArrowException) as error:
        raise UsageError(
            f"--sample {file} cannot be read: {error}", "A Parquet file", "Check --sample"
        ) from None
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise UsageError(
            f"column {column!r} of {file} of type {texts.type}", "Texts", "Name another column with --text"
        )
    return [str(text) for text in texts.to_pylist()]
