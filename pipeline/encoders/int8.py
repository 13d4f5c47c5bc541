"""A transformer's graph with products of 8-bit integers, for CPUs; pooling and normalisation stay fp32.

Every row of activations has its own scale, so a vector does not depend on its batch-mates; onnxruntime's own dynamic
quantization takes one scale for the whole batch. MatMulNBits (8 bits, accuracy level 4) is as independent, and
measured no faster than fp32 on a CPU with VNNI, where these products take less than half the time.

Channels of activations that are large are made smaller and their weights larger (SmoothQuant, arXiv 2211.10438, with
alpha 1/2), which halves the error of MiniLM and of mpnet-base. The factors are powers of two, so that two machines
whose fp32 differs in the last bit make the same integers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.encoders.exporting import save_graph
from pipeline.encoders.parity import Inputs
from pipeline.encoders.runtime import open_session

_LEVELS = 127
_ZERO_POINT = 128
_CONTRIB = "com.microsoft"
# A channel that was silent on the sample must not be blown up when it speaks.
_LARGEST_FACTOR = 16.0

Weights = tuple[str, ...]
"""The constant matrices that one value is multiplied by: query, key and value share theirs."""


def to_int8(model: onnx.ModelProto, inputs: Inputs) -> None:
    """Replace every product with a constant matrix by one of integers, in place; `inputs` are a sample to tune on."""
    graph = model.graph
    matrices = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if _is_matrix(tensor)
    }
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in matrices]
    users: dict[str, Weights] = {}
    for node in products:
        users[node.input[0]] = (*users.get(node.input[0], ()), node.input[1])
    largest = _largest(model, sorted(users), inputs)
    groups = {weights: number for number, weights in enumerate(dict.fromkeys(users.values()))}
    for weights, number in groups.items():
        activation = np.max([largest[value] for value, used in users.items() if used == weights], axis=0)
        factors = _factors(activation, [matrices[name] for name in weights])
        graph.initializer.append(
            numpy_helper.from_array((1 / factors).astype(np.float32), f"int8.{number}.smooth")
        )
        for name in weights:
            graph.initializer.extend(
                _quantize_weight(f"int8.{number}.{name}", matrices[name] * factors[:, None])
            )
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    _replace(graph, products, {value: groups[weights] for value, weights in users.items()}, opset)
    if all(entry.domain != _CONTRIB for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))


def _replace(
    graph: onnx.GraphProto, products: Sequence[onnx.NodeProto], group_of: dict[str, int], opset: int
) -> None:
    """Write integer products in the place of these, and leave out the weights that nothing uses any more."""
    replaced = {node.output[0] for node in products}
    nodes: list[onnx.NodeProto] = []
    quantized: set[str] = set()
    for node in graph.node:
        if node.output[0] not in replaced:
            nodes.append(node)
            continue
        value = node.input[0]
        if value not in quantized:
            quantized.add(value)
            nodes += _quantize(value, f"int8.{group_of[value]}.smooth", opset)
        nodes += _integer_product(node, f"int8.{group_of[value]}.{node.input[1]}")
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(_constants())
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _is_matrix(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2


def _largest(model: onnx.ModelProto, values: Sequence[str], inputs: Inputs) -> dict[str, NDArray[np.float32]]:
    """The largest magnitude of each channel of these values on real tokens of the inputs: float32[k] each."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in values
    )
    with tempfile.TemporaryDirectory() as folder:  # a file, as a protobuf in memory ends at 2 GB
        save_graph(watched, Path(folder) / "watched.onnx")
        session = open_session(Path(folder) / "watched.onnx", "cpu")
    taken = {value.name for value in session.get_inputs()}
    largest: dict[str, NDArray[np.float32]] = {}
    for ids, mask in inputs:
        feeds = {"input_ids": ids, "attention_mask": mask}
        results = session.run(list(values), {name: feeds[name] for name in taken})
        for name, result in zip(values, results, strict=True):
            channels = np.abs(result.reshape(-1, result.shape[-1])).max(axis=0)
            largest[name] = np.maximum(largest.get(name, channels), channels)
    return largest


def _factors(activation: NDArray[np.float32], weights: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """What each channel is divided by, float32[k]: the root of its largest activation over its largest weight."""
    weight = np.max([np.abs(matrix).max(axis=1) for matrix in weights], axis=0)
    ratio = np.log2(np.maximum(activation, 1e-9)) - np.log2(np.maximum(weight, 1e-9))
    exponent = np.rint((ratio - np.median(ratio)) / 2)
    limit = np.log2(_LARGEST_FACTOR)
    factors: NDArray[np.float32] = np.exp2(np.clip(exponent, -limit, limit)).astype(np.float32)
    return factors


def _quantize(value: str, smooth: str, opset: int) -> list[onnx.NodeProto]:
    """Value float32[…, k] → its channels over their factors as uint8[…, k] around 128, and a scale float32[…, 1]."""
    name = f"{value}.int8"

    def reduce(op: str, output: str) -> onnx.NodeProto:
        if opset < 18:
            return helper.make_node(op, [f"{name}.smooth"], [output], axes=[-1], keepdims=1)
        return helper.make_node(op, [f"{name}.smooth", "int8.axis"], [output], keepdims=1)

    return [
        helper.make_node("Mul", [value, smooth], [f"{name}.smooth"]),
        reduce("ReduceMax", f"{name}.max"),
        reduce("ReduceMin", f"{name}.min"),
        helper.make_node("Neg", [f"{name}.min"], [f"{name}.negative"]),
        helper.make_node("Max", [f"{name}.max", f"{name}.negative", "int8.tiny"], [f"{name}.largest"]),
        helper.make_node("Div", ["int8.levels", f"{name}.largest"], [f"{name}.inverse"]),
        helper.make_node("Div", [f"{name}.largest", "int8.levels"], [f"{name}.scale"]),
        helper.make_node("Mul", [f"{name}.smooth", f"{name}.inverse"], [f"{name}.scaled"]),
        helper.make_node("QuantizeLinear", [f"{name}.scaled", "int8.one", "int8.zero"], [name]),
    ]


def _integer_product(node: onnx.NodeProto, weight: str) -> list[onnx.NodeProto]:
    value, product = f"{node.input[0]}.int8", f"{node.output[0]}.product"
    inputs = [value, weight, "int8.one", f"{weight}.scale", "int8.zero"]
    return [
        helper.make_node("MatMulIntegerToFloat", inputs, [product], name=node.name, domain=_CONTRIB),
        helper.make_node("Mul", [product, f"{value}.scale"], list(node.output)),
    ]


def _quantize_weight(name: str, weight: NDArray[np.float32]) -> list[onnx.TensorProto]:
    """Weight float32[k, n] → int8[k, n] and its scale float32[n], one a column."""
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-12) / _LEVELS
    return [
        numpy_helper.from_array(np.rint(weight / scale).astype(np.int8), name),
        numpy_helper.from_array(scale.astype(np.float32), f"{name}.scale"),
    ]


def _constants() -> list[onnx.TensorProto]:
    return [
        numpy_helper.from_array(np.array([-1], dtype=np.int64), "int8.axis"),
        numpy_helper.from_array(np.array(1e-12, dtype=np.float32), "int8.tiny"),
        numpy_helper.from_array(np.array(_LEVELS, dtype=np.float32), "int8.levels"),
        numpy_helper.from_array(np.array(1.0, dtype=np.float32), "int8.one"),
        numpy_helper.from_array(np.array(_ZERO_POINT, dtype=np.uint8), "int8.zero"),
    ]
