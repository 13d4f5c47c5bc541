"""A transformer's graph with weights and activations in half precision, for GPUs. On a CPU it is right, and slow.

Positions and angles stay fp32 (half precision counts to 2048 only), as does the head, which is added afterwards.
onnxruntime's own converter casts every value between two nodes kept at fp32 to fp16 and back, so it is not used.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import EncoderError

_LARGEST = float(np.finfo(np.float16).max)
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)
# Take their type from an attribute, or have no kernel for half precision everywhere.
_FLOAT_ONLY = {"Constant", "ConstantOfShape", "CumSum", "EyeLike", "Range"}


def to_fp16(model: onnx.ModelProto, too_large: Collection[str] = ()) -> None:
    """Make the graph compute in fp16, in place; its inputs keep their types, its outputs may become fp16.

    Nodes that take or give values named in `too_large` stay fp32.

    Raises EncoderError for a graph with branches or loops.
    """
    graph = model.graph
    if any(
        a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        for n in graph.node
        for a in n.attribute
    ):
        raise EncoderError(
            "a graph with branches or loops", "A plain graph for fp16", "Set encoder.precision to fp32"
        )
    floats = float_values(model)
    exact = _exact_nodes(graph) | {
        node.name for node in graph.node if not set(too_large).isdisjoint((*node.input, *node.output))
    }
    halves = {
        output
        for node in graph.node
        if node.name not in exact and node.op_type not in _FLOAT_ONLY
        for output in node.output
        if output in floats
    }
    _rewrite(graph, floats, halves)
    del graph.value_info[:]  # their types are those of before


def float_values(model: onnx.ModelProto) -> set[str]:
    """The names of all fp32 values; inferred without the weights' numbers, as a protobuf ends at 2 GB."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    floats = [tensor for tensor in bare.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    for tensor in floats:
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
    graph = onnx.shape_inference.infer_shapes(bare).graph
    typed = [*graph.value_info, *graph.input, *graph.output]
    names = {value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {tensor.name for tensor in floats}


def _rewrite(graph: onnx.GraphProto, floats: set[str], halves: set[str]) -> None:
    """Give every node its float inputs in the precision of its outputs, by casts and by copies of the weights."""
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name in floats}
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()
    for node in graph.node:
        half = _is_half(node, floats, halves)
        for place, name in enumerate(node.input):
            if name not in floats or (name in halves) == half:
                continue
            node.input[place] = f"{name}.{'half' if half else 'float'}"
            if node.input[place] in made:
                continue
            made.add(node.input[place])
            if name in constants:
                graph.initializer.append(_halve(constants[name], node.input[place]))
            else:
                to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
                nodes.append(
                    helper.make_node("Cast", [name], [node.input[place]], name=node.input[place], to=to)
                )
        if half and node.op_type == "Cast":
            next(a for a in node.attribute if a.name == "to").i = TensorProto.FLOAT16
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _is_half(node: onnx.NodeProto, floats: set[str], halves: set[str]) -> bool:
    """Whether a node computes in half; one without a float result (a comparison) takes its inputs as they come."""
    if any(output in floats for output in node.output):
        return any(output in halves for output in node.output)
    return any(name in halves for name in node.input)


def _halve(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """A weight in fp16; finite values stay finite, so that a mask's lowest number does not become -inf."""
    value = numpy_helper.to_array(tensor)
    clipped = np.where(np.isfinite(value), np.clip(value, -_LARGEST, _LARGEST), value)
    return numpy_helper.from_array(clipped.astype(np.float16), name)


def _exact_nodes(graph: onnx.GraphProto) -> set[str]:
    """Nodes that compute positions: what sines, cosines and casts to integers (buckets of distances) come from."""
    producer = {output: node for node in graph.node for output in node.output}
    waiting = [node for node in graph.node if node.op_type in ("Sin", "Cos") or _casts_to_integer(node)]
    exact: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.name not in exact:
            exact.add(node.name)
            waiting += [producer[name] for name in node.input if name in producer]
    return exact


def _casts_to_integer(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i in _INTEGERS for a in node.attribute)
