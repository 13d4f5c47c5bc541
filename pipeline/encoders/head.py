"""The end of the graph: token states → pooling → dense layers → normalisation → `sentence_embedding`.

Written with onnx.helper and not exported from torch, so that a model with only an ONNX graph gets the same head, so
that it stays fp32 at any precision, and so that the parity gate compares two independent implementations of pooling.
Rows are padded on the right. Only operators that mean the same in opsets 11 to 25 are used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.encoders.exported import OUTPUT, RAW
from pipeline.encoders.folder import Dense, Head, Layer, Slice
from pipeline.encoders.space import Space

INPUTS = ("input_ids", "attention_mask")
# No exporter begins a name with this.
PREFIX = "head."
# Lengths below these are taken for them, as torch and sentence-transformers do.
_MIN_COUNT = 1e-9
_MIN_NORM = 1e-12


@dataclass
class _Writer:
    """Nodes and constants of the head, as they are added."""

    opset: int
    prefix: str = PREFIX
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:  # noqa: ANN401 - an operator's own
        """Add a node and return the name of its output."""
        name = f"{self.prefix}{len(self.nodes)}.{op}"
        output = output or name
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def constant(self, value: NDArray[Any]) -> str:
        """Add a constant and return its name."""
        name = f"{self.prefix}constant.{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def scalar(self, value: float) -> str:
        """Add a float32 scalar and return its name."""
        return self.constant(np.array(value, dtype=np.float32))

    def reshape(self, value: str, *shape: int) -> str:
        """Reshape; 0 keeps a dimension, -1 takes the rest."""
        return self.node("Reshape", value, self.constant(np.array(shape, dtype=np.int64)))

    def reduce(self, op: str, value: str, axis: int, keepdims: int) -> str:
        """Reduce along one axis; ReduceMax and ReduceL2 take it as an input since opset 18."""
        if self.opset < 18:
            return self.node(op, value, axes=[axis], keepdims=keepdims)
        return self.node(op, value, self.constant(np.array([axis], dtype=np.int64)), keepdims=keepdims)


def append_head(model: onnx.ModelProto, states: str, head: Head, beside: str = "") -> None:
    """Make `sentence_embedding` float32[n, dims] the graph's only output, computed from the token states.

    `beside` names a second one: `raw_embedding`, the same before a normalisation at the end, or `token_states`
    float32[n, length, hidden].

    `states` float[n, length, hidden] is a value of the graph; `attention_mask` int64[n, length] is an input of it.
    Changes the model in place.
    """
    writer = _Writer(_opset(model))
    states = writer.node("Cast", states, to=TensorProto.FLOAT)
    mask = writer.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    pooled = [_pool(writer, mode, states, mask) for mode in head.pooling]
    value = pooled[0] if len(pooled) == 1 else writer.node("Concat", *pooled, axis=-1)
    raw = value
    for layer in head.layers:
        raw, value = value, _apply(writer, value, layer)
    writer.node("Identity", value, output=OUTPUT)
    model.graph.node.extend(writer.nodes)
    model.graph.initializer.extend(writer.constants)
    del model.graph.output[:]
    dims = _dims_of(head)
    model.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", dims]))
    if beside:
        raw = raw if "normalize" in head.layers[-1:] else value
        given, shape = (raw, ["batch", dims]) if beside == RAW else (states, ["batch", "length", "hidden"])
        model.graph.node.append(helper.make_node("Identity", [given], [beside], name=beside))
        model.graph.output.append(helper.make_tensor_value_info(beside, TensorProto.FLOAT, shape))


def _opset(model: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def leave_raw(model: onnx.ModelProto) -> None:
    """Take the normalisation off the end of a graph that `append_head` made, in place."""
    made = _made(model)
    made[OUTPUT].input[0] = made[made[OUTPUT].input[0]].input[0]
    _prune(model)


def append_space(model: onnx.ModelProto, space: Space) -> None:
    """Put a fitted space and a normalisation behind a graph that `append_head` made without one, in place.

    What is beside the vectors is mapped too: they are means of `raw_embedding` or `token_states` where those are used,
    and a mean is mapped by mapping what it is taken of.
    """
    writer = _Writer(_opset(model), "space.")
    made = _made(model)
    for value in model.graph.output:
        node = made[value.name]
        mapped = _map(writer, node.input[0], space)
        node.input[0] = _normalize(writer, mapped) if value.name == OUTPUT else mapped
        value.type.tensor_type.shape.dim[-1].dim_value = space.dims
    ends = [made[value.name] for value in model.graph.output]
    for node in ends:
        model.graph.node.remove(node)
    model.graph.node.extend([*writer.nodes, *ends])
    model.graph.initializer.extend(writer.constants)


def _map(writer: _Writer, value: str, space: Space) -> str:
    """Move float32[..., hidden] into a space: its first dimensions, where the space has fewer."""
    ends = [writer.constant(np.array([n], np.int64)) for n in (0, len(space.mean), -1)]
    value = writer.node("Sub", writer.node("Slice", value, *ends), writer.constant(space.mean))
    return value if space.matrix is None else writer.node("MatMul", value, writer.constant(space.matrix))


def _made(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Which node makes a value, by the value's name."""
    return {output: node for node in model.graph.node for output in node.output}


def _prune(model: onnx.ModelProto) -> None:
    """Remove the head's nodes that nothing uses."""
    used = {value.name for value in model.graph.output}
    for node in reversed(list(model.graph.node)):
        if node.name.startswith(PREFIX) and not used & set(node.output):
            model.graph.node.remove(node)
        else:
            used.update(node.input)


def _apply(writer: _Writer, value: str, layer: Layer) -> str:
    if isinstance(layer, Dense):
        return _dense(writer, value, layer)
    if isinstance(layer, Slice):
        ends = [writer.constant(np.array([number], dtype=np.int64)) for number in (0, layer.dims, 1)]
        return writer.node("Slice", value, *ends)
    return _normalize(writer, value)


def _dims_of(head: Head) -> int | str:
    """The length of a vector where the head alone says it, else a name for it."""
    sizes = [layer.out_features for layer in head.layers if isinstance(layer, Dense)]
    sizes += [layer.dims for layer in head.layers if isinstance(layer, Slice)]  # the last where there is one
    return sizes[-1] if sizes else "dims"


def _pool(writer: _Writer, mode: str, states: str, mask: str) -> str:
    """One float32[n, hidden] out of states float32[n, length, hidden] and mask float32[n, length].

    All but cls and max are a weighted sum, as a product of weights [n, 1, length] and states: one pass over them.
    """
    if mode == "cls":
        return writer.node("Gather", states, writer.constant(np.array(0, dtype=np.int64)), axis=1)
    if mode == "max":
        real = writer.node("Cast", writer.reshape(mask, 0, -1, 1), to=TensorProto.BOOL)
        masked = writer.node("Where", real, states, writer.scalar(-np.inf))
        return writer.reduce("ReduceMax", masked, 1, keepdims=0)
    weights, total = _weights(writer, mode, mask)
    summed = writer.reshape(writer.node("MatMul", writer.reshape(weights, 0, 1, -1), states), 0, -1)
    return writer.node("Div", summed, total) if total else summed


def _weights(writer: _Writer, mode: str, mask: str) -> tuple[str, str]:
    """A token's weight, float32[n, length], and what the sum is divided by, float32[n, 1] ("" for nothing).

    Positions count from 1 along the mask; the number of tokens is the mask times itself, as it is 0 or 1.
    """
    position = writer.node("CumSum", mask, writer.constant(np.array(1, dtype=np.int64)))
    if mode == "lasttoken":
        last = writer.node("Equal", position, _product(writer, mask, mask))
        return writer.node("Mul", writer.node("Cast", last, to=TensorProto.FLOAT), mask), ""
    weights = writer.node("Mul", position, mask) if mode == "weightedmean" else mask
    total = writer.node("Max", _product(writer, weights, mask), writer.scalar(_MIN_COUNT))
    return weights, writer.node("Sqrt", total) if mode == "mean_sqrt_len_tokens" else total


def _product(writer: _Writer, left: str, right: str) -> str:
    """The scalar product of each row of two float32[n, length]: float32[n, 1]."""
    return writer.reshape(
        writer.node("MatMul", writer.reshape(left, 0, 1, -1), writer.reshape(right, 0, -1, 1)), 0, 1
    )


def _dense(writer: _Writer, value: str, layer: Dense) -> str:
    from safetensors.numpy import load_file

    tensors = load_file(layer.file)
    value = writer.node("MatMul", value, writer.constant(tensors["linear.weight"].astype(np.float32).T))
    if layer.bias:
        value = writer.node("Add", value, writer.constant(tensors["linear.bias"].astype(np.float32)))
    if layer.activation == "Gelu":  # the operator is younger than opset 11: x/2 (1 + erf(x/√2))
        erf = writer.node("Erf", writer.node("Mul", value, writer.scalar(0.5**0.5)))
        half = writer.node("Mul", value, writer.scalar(0.5))
        return writer.node("Mul", half, writer.node("Add", erf, writer.scalar(1.0)))
    if layer.activation == "Silu":
        return writer.node("Mul", value, writer.node("Sigmoid", value))
    return writer.node(layer.activation, value) if layer.activation else value


def _normalize(writer: _Writer, value: str) -> str:
    norm = writer.reduce("ReduceL2", value, 1, keepdims=1)
    return writer.node("Div", value, writer.node("Max", norm, writer.scalar(_MIN_NORM)))
