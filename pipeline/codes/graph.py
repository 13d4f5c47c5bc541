"""The binarizer as ONNX, behind an encoder's graph or alone: only codes and scales leave the device.

Written with onnx.helper in float64 and only with operators that are exact or correctly rounded, so that its codes
are those of `Binarizer.encode`, bit for bit, given the same vectors. Scales agree as float32 sums do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.codes.binarizer import GRID, LEAST, Binarizer, Block
from pipeline.errors import EncoderError

VECTORS, CODES, SCALES = "vectors", "codes", "scales"
_PREFIX = "codes."
_OPSET, _IR_VERSION = 18, 10


@dataclass
class _Writer:
    """Nodes and constants as they are added; all floats are float64."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:  # noqa: ANN401 - an operator's own
        """Add a node and return the name of its output."""
        name = f"{_PREFIX}{len(self.nodes)}.{op}"
        self.nodes.append(helper.make_node(op, list(inputs), [output or name], name=name, **attributes))
        return output or name

    def constant(self, value: Any) -> str:  # noqa: ANN401 - an array or a number
        """Add a constant of the value's own type and return its name."""
        name = f"{_PREFIX}constant.{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def number(self, value: float) -> str:
        """Add a float64 scalar."""
        return self.constant(np.float64(value))

    def reduce(self, op: str, value: str) -> str:
        """Reduce rows, keeping the dimension."""
        return self.node(op, value, self.constant(np.array([1], np.int64)), keepdims=1)

    def on_grid(self, value: str) -> str:
        """Round to multiples of 1/GRID, halves to even."""
        whole = self.node("Round", self.node("Mul", value, self.number(GRID)))
        return self.node("Div", whole, self.number(GRID))

    def unit(self, value: str) -> str:
        """What `to_unit` does."""
        largest = self.node("Max", self.reduce("ReduceMax", self.node("Abs", value)), self.number(LEAST))
        rows = self.on_grid(self.node("Div", value, largest))
        square = self.node("Max", self.reduce("ReduceSum", self.node("Mul", rows, rows)), self.number(LEAST))
        return self.on_grid(self.node("Div", rows, self.node("Sqrt", square)))

    def block(self, block: Block, value: str) -> str:
        """What `apply` does."""
        for n, layer in enumerate(block):
            product = self.node("MatMul", value, self.constant(layer.weight.T.astype(np.float64)))
            value = self.node("Add", product, self.constant(layer.bias.astype(np.float64)))
            if n < len(block) - 1:
                value = self.on_grid(self.node("Relu", value))
        return value

    def plane(self, value: str) -> str:
        """1.0 where a value is above 0, else 0.0."""
        return self.node("Cast", self.node("Greater", value, self.number(0)), to=TensorProto.DOUBLE)

    def signs(self, plane: str, size: float) -> str:
        """±size of a plane."""
        doubled = self.node("Mul", plane, self.number(2 * size))
        return self.node("Sub", doubled, self.number(size))


def append_binarizer(model: onnx.ModelProto, binarizer: Binarizer) -> None:
    """Make `codes` uint8[n, bytes] and `scales` float32[n, 1] a graph's outputs instead of its vectors.

    The graph's only output is float32[n, input_dims]. Changes the model in place. Raises EncoderError for others.
    """
    outputs = list(model.graph.output)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if len(outputs) != 1 or opset < _OPSET:
        raise EncoderError(
            f"a graph with {len(outputs)} outputs, in opset {opset}",
            f"One output, the vectors, in opset {_OPSET} or later",
            "Use a model whose weights are safetensors: its graph is made here",
        )
    writer = _Writer()
    _write(writer, outputs[0].name, binarizer)
    model.graph.node.extend(writer.nodes)
    model.graph.initializer.extend(writer.constants)
    del model.graph.output[:]
    model.graph.output.extend(_outputs(binarizer))


def to_graph(binarizer: Binarizer) -> onnx.ModelProto:
    """The binarizer alone: `vectors` float32[n, input_dims] → `codes` uint8[n, bytes], `scales` float32[n, 1]."""
    writer = _Writer()
    _write(writer, VECTORS, binarizer)
    width = binarizer.spec.input_dims
    vectors = helper.make_tensor_value_info(VECTORS, TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph(writer.nodes, "codes", [vectors], _outputs(binarizer), writer.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def _outputs(binarizer: Binarizer) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(CODES, TensorProto.UINT8, ["batch", binarizer.spec.bytes]),
        helper.make_tensor_value_info(SCALES, TensorProto.FLOAT, ["batch", 1]),
    ]


def _write(writer: _Writer, vectors: str, binarizer: Binarizer) -> None:
    unit = writer.unit(writer.node("Cast", vectors, to=TensorProto.DOUBLE))
    planes = [writer.plane(writer.block(binarizer.first, unit))]
    code = writer.signs(planes[0], 1.0)
    for n, (rebuild, refine) in enumerate(zip(binarizer.rebuild, binarizer.refine, strict=True), 1):
        left = writer.node("Sub", unit, writer.unit(writer.block(rebuild, code)))
        planes.append(writer.plane(writer.block(refine, left)))
        code = writer.node("Add", code, writer.signs(planes[-1], 2.0**-n))
    packed = writer.node("Concat", *planes, axis=1) if len(planes) > 1 else planes[0]
    shape = writer.constant(np.array([0, binarizer.spec.bytes, 8], np.int64))
    digits = np.array([128, 64, 32, 16, 8, 4, 2, 1], np.float64)
    values = writer.node("MatMul", writer.node("Reshape", packed, shape), writer.constant(digits))
    writer.node("Cast", values, to=TensorProto.UINT8, output=CODES)
    writer.node("Cast", _scale(writer, unit, code, binarizer), to=TensorProto.FLOAT, output=SCALES)


def _scale(writer: _Writer, unit: str, code: str, binarizer: Binarizer) -> str:
    """What `Binarizer._scale` does, of the integers V = 2^(bits−1) · code."""
    values = writer.node("Mul", code, writer.number(2.0 ** (binarizer.spec.bits - 1)))
    if binarizer.spec.scale == "norm":
        square = writer.reduce("ReduceSum", writer.node("Mul", values, values))
        return writer.node("Reciprocal", writer.node("Sqrt", square))
    away = writer.node("Sub", unit, writer.constant(binarizer.mean.astype(np.float64)))
    target = writer.node("MatMul", away, writer.constant(binarizer.query.T.astype(np.float64)))
    products = writer.node("Mul", values, target)
    least = writer.node("Mul", writer.reduce("ReduceSum", writer.node("Abs", products)), writer.number(0.01))
    along = writer.node(
        "Max", writer.reduce("ReduceSum", products), writer.node("Add", least, writer.number(LEAST))
    )
    return writer.node("Div", writer.reduce("ReduceSum", writer.node("Mul", target, target)), along)
