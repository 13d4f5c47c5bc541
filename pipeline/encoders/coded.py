"""A binarizer behind an encoder's graph: only codes leave the device, and the vectors where they are kept.

Where a vector is made of several rows of the graph, numpy codes it: the bits are the same, as the gate sees to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.codes import Binarizer, Codes
from pipeline.codes.layout import to_rows
from pipeline.encoders.parity import Figures, Inputs, Run, check_parity
from pipeline.encoders.runtime import open_session
from pipeline.errors import ParityError

_LENGTHS = "vector_lengths"
_SCALE_TOLERANCE = 1e-3  # float32 sums against float64


def add_binarizer(plain: Path, binarizer: Binarizer, file: Path, inputs: Inputs) -> dict[str, Figures]:
    """Write the graph `plain` with a binarizer behind it to `file`, behind a gate.

    Its outputs, in this order: codes uint8[n, bytes], scales float32[n, 1], each vector's length float32[n] (the sum
    of its absolute values: a vector that is zero, NaN or infinite has a code like any other), and the vectors. Raises
    ParityError unless the vectors are those of `plain` and every bit is what numpy makes of them.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from pipeline.codes.graph import append_binarizer
    from pipeline.encoders.exporting import save_graph

    model = onnx.load(str(plain))
    vectors = onnx.ValueInfoProto()
    vectors.CopyFrom(model.graph.output[0])
    append_binarizer(model, binarizer)
    axis = numpy_helper.from_array(np.array([1], np.int64), f"{_LENGTHS}.axis")
    model.graph.initializer.append(axis)
    model.graph.node.append(
        helper.make_node("ReduceL1", [vectors.name, axis.name], [_LENGTHS], name=_LENGTHS, keepdims=0)
    )
    model.graph.output.append(helper.make_tensor_value_info(_LENGTHS, TensorProto.FLOAT, ["batch"]))
    model.graph.output.append(vectors)
    save_graph(model, file)
    bare = open_session(plain, "cpu")
    reference = [bare.run(None, _feeds(ids, mask))[0] for ids, mask in inputs]
    return {
        name: _check(name, open_session(file, "cpu", optimise=optimise), binarizer, reference, inputs)
        for name, optimise in (("exported", False), ("optimised", True))
    }


def as_coded_run(session: Any, bits: int, keep_vectors: bool) -> Run:  # noqa: ANN401 - an InferenceSession
    """A session over such a graph as a function to float32[n, bits · dims (+ dims)]: rows as a store takes them.

    Codes as planes times the scale, then the vectors where they are kept; a vector without a direction makes NaN.
    """
    outputs = [output.name for output in session.get_outputs()]
    wanted = outputs if keep_vectors else outputs[:-1]

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.floating]:
        packed, scales, lengths, *vectors = session.run(wanted, _feeds(ids, mask))
        usable = np.isfinite(lengths) & (lengths > 0)
        scale = np.where(usable, scales[:, 0], np.float32(np.nan))
        return np.concatenate([to_rows(Codes(packed, scale), bits), *vectors], axis=1)

    return run


def coded_rows(binarizer: Binarizer, keep_vectors: bool, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same of vectors float32[n, dims] that are made behind the graph, out of several of its rows."""
    usable = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
    packed = np.zeros((len(vectors), binarizer.spec.bytes), np.uint8)
    scale = np.full(len(vectors), np.nan, np.float32)
    packed[usable], scale[usable] = binarizer.encode(vectors[usable])
    codes = to_rows(Codes(packed, scale), binarizer.spec.bits)
    return np.concatenate([codes, vectors], axis=1) if keep_vectors else codes


def _feeds(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    return {"input_ids": ids, "attention_mask": mask}


def _check(
    name: str,
    session: Any,  # noqa: ANN401 - an onnxruntime.InferenceSession
    binarizer: Binarizer,
    reference: list[NDArray[np.floating]],
    inputs: Inputs,
) -> Figures:
    """Hold a session to the vectors of the plain graph, and its codes to those of numpy, bit for bit."""

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.floating]:
        packed, scales, _, vectors = session.run(None, _feeds(ids, mask))
        expected = binarizer.encode(vectors)
        wrong = int((packed != expected.packed).any(axis=1).sum())
        if wrong or not np.allclose(scales[:, 0], expected.scale, rtol=_SCALE_TOLERANCE):
            raise ParityError(
                f"the {name} graph codes {wrong} of {len(packed)} vectors otherwise than numpy does",
                "The same bits, and scales but for rounding",
                "Report it as a bug with this message",
            )
        return np.asarray(vectors)

    return check_parity(f"the {name} graph with codes", "fp32", reference, run, inputs)
