"""An exported encoder held to the model it was made from: the gate again, input by input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import EncoderConfig
from pipeline.encoders.decoders.wording import Wording
from pipeline.encoders.exported import GRAPH, TOKENIZER, is_exported, read_exported, read_manifest
from pipeline.encoders.locate import locate
from pipeline.encoders.parity import Inputs, compare, passes
from pipeline.encoders.prepare import check_source, model_of, probe, runs_of
from pipeline.encoders.runtime import open_session
from pipeline.encoders.space import Space, load_space
from pipeline.encoders.spec import EncoderSpec
from pipeline.errors import EncoderError, UsageError
from pipeline.schemas import Observer, Progress
from pipeline.tokens import load_tokenizer


def check(
    folder: Path, model: str, config: EncoderConfig, observe: Observer = lambda _: None
) -> dict[str, Any]:
    """Run the probes through an exported encoder and through torch, as JSON values.

    `model`: where the model is now; "" takes the name it was exported under. `rows` holds the figures of each shape,
    before and after onnxruntime's optimisations, `passed` whether all of them together pass the gate. Raises
    EncoderError where the model's files are not those that it was made from.
    """
    if not is_exported(folder):
        raise UsageError(
            f"{folder} is no exported encoder",
            "A folder that `headwater encoders export` wrote",
            "Check the folder",
        )
    manifest = read_manifest(folder)
    spec = read_exported(folder)
    spec = replace(spec, source=_find(model or manifest["spec"]["source"]))
    space = load_space(folder, spec.modules)
    plain = EncoderSpec.read(manifest["plain"], spec.source) if space else spec
    check_source(plain, config.model_copy(update={"codes": ""}))
    inputs = probe(load_tokenizer(folder / TOKENIZER), manifest["vocabulary"], manifest["pad_id"], plain)
    observe(Progress("running the model"))
    reference = vectors_of(plain, inputs, space, Wording.read(manifest))
    rows, passed = [], True
    for name, optimise in (("exported", False), ("optimised", True)):
        observe(Progress(f"running the {name} graph"))
        session = open_session(folder / GRAPH, "cpu", optimise=optimise)
        for output, run in runs_of(session, spec).items():
            got = [run(ids, mask) for ids, mask in inputs]
            found = shape_by_shape(reference, got, inputs, spec.precision)
            rows += [{"graph": name + output} | row for row in found]
            passed &= passes(compare(list(zip(reference, got, strict=True))), spec.precision)
    return {
        "encoder": str(folder),
        "model": spec.source,
        "version": spec.version,
        "precision": spec.precision,
        "rows": rows,
        "passed": passed,
    }


def _find(model: str) -> str:
    try:
        return locate(model).source
    except EncoderError as error:
        raise EncoderError(
            error.got,
            "The model that the encoder was exported from",
            "Say where it is now: --model FOLDER_OR_ID",
        ) from error


def shape_by_shape(
    reference: Sequence[NDArray[np.floating]],
    got: Sequence[NDArray[np.floating]],
    inputs: Inputs,
    precision: str,
) -> list[dict[str, Any]]:
    """The figures of each batch, and whether they pass: but for the mean, which is one over all, as the gate has it."""
    rows = []
    for expected, vectors, (ids, _) in zip(reference, got, inputs, strict=True):
        figures = compare([(expected, vectors)])
        passed = passes(replace(figures, mean_cosine=1.0), precision)
        rows.append({"rows": len(ids), "tokens": ids.shape[1], **asdict(figures), "passed": passed})
    return rows


def vectors_of(
    plain: EncoderSpec, inputs: Inputs, space: Space | None, wording: Wording | None
) -> list[NDArray[np.floating]]:
    """The vectors of these inputs by an encoder's model itself, in a space where there is one: float[n, dims] each.

    `wording` is what goes around a language model's texts.
    """
    source = model_of(plain)
    if space and plain.normalised:
        source = replace(source, head=replace(source.head, layers=source.head.layers[:-1]))
    if source.format == "onnx":
        from pipeline.encoders.graph import by_graph

        vectors = by_graph(source, inputs)
    else:
        from pipeline.encoders.stock import load_stock, stock_vectors

        vectors = stock_vectors(load_stock(source, plain, wording), source, plain, inputs)
    return [space.apply(each) for each in vectors] if space else vectors
