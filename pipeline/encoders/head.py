"""The end of the graph: token states → pooling → dense layers → normalisation → `sentence_embedding`.

Written with onnx.helper and not exported from torch, so that a model with only an ONNX graph gets the same head, so
that it stays fp32 at any precision, and so that the parity gate compares two independent implementations of pooling.
Rows are padded on either side. Only operators that mean the same in opsets 11 to 25 are used,
but for poolings with weights of their own: those are language models', whose graphs torch makes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from pipeline.encoders.decoders.perceiver import latent_attention, multi_layer
from pipeline.encoders.decoders.wording import LeftOut
from pipeline.encoders.exported import OUTPUT, RAW
from pipeline.encoders.folder import Dense, Head, Layer, Slice
from pipeline.encoders.space import Space
from pipeline.encoders.writer import Writer

INPUTS = ("input_ids", "attention_mask")
# No exporter begins a name with this.
PREFIX = "head."
# Lengths below these are taken for them, as torch and sentence-transformers do.
_MIN_COUNT = 1e-9
_MIN_NORM = 1e-12


def append_head(
    model: onnx.ModelProto,
    states: Sequence[str],
    head: Head,
    beside: str = "",
    left_out: Sequence[LeftOut] = (),
) -> None:
    """Make `sentence_embedding` float32[n, dims] the graph's only output, computed from the token states.

    `beside` names a second one: `raw_embedding`, the same before a normalisation at the end, or `token_states`
    float32[n, length, hidden]. `left_out`: which rows begin with tokens that are not pooled.

    `states` float[n, length, hidden], those of each layer where the head pools all of them, are values of the graph;
    `input_ids` and `attention_mask` int64[n, length] are inputs of it. Changes the model in place.
    """
    writer = Writer(_opset(model), PREFIX)
    layers = [writer.node("Cast", each, to=TensorProto.FLOAT) for each in states]
    mask = writer.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    if left_out:
        mask = _leave_out(writer, mask, left_out)
    if head.trained and head.trained.kind == "latent-attention":
        layers = [latent_attention(writer, each, head.trained) for each in layers]
    pooled = [_pool(writer, mode, each, mask) for each in layers for mode in head.pooling]
    if head.trained and head.trained.kind == "multi-layer":
        value = multi_layer(writer, pooled, head.trained)
    else:
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
        given, shape = (raw, ["batch", dims]) if beside == RAW else (layers[0], ["batch", "length", "hidden"])
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
    writer = Writer(_opset(model), "space.")
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


def _map(writer: Writer, value: str, space: Space) -> str:
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


def _leave_out(writer: Writer, mask: str, left_out: Sequence[LeftOut]) -> str:
    """The mask float32[n, length] without the first tokens of rows that begin as a prompt does.

    Padding on either side: places count from 1 along the mask, and what a token should be is looked up by them.
    """
    place = writer.node("CumSum", mask, writer.constant(np.array(1, dtype=np.int64)))
    count = writer.constant(np.zeros((1, 1), np.float32))
    for one in left_out:
        size = len(one.begins)
        at = writer.node("Sub", writer.node("Cast", place, to=TensorProto.INT64), _integer(writer, 1))
        at = writer.node("Max", writer.node("Min", at, _integer(writer, size - 1)), _integer(writer, 0))
        wanted = writer.node("Gather", writer.constant(np.array(one.begins, np.int64)), at, axis=0)
        same = writer.node("Cast", writer.node("Equal", "input_ids", wanted), to=TensorProto.FLOAT)
        within = writer.node("LessOrEqual", place, writer.scalar(size))
        within = writer.node("Mul", writer.node("Cast", within, to=TensorProto.FLOAT), mask)
        whole = writer.node("Equal", _product(writer, within, same), writer.scalar(size))
        begins = writer.node("Cast", whole, to=TensorProto.FLOAT)
        count = writer.node("Max", count, writer.node("Mul", begins, writer.scalar(one.tokens)))
    behind = writer.node("Cast", writer.node("Greater", place, count), to=TensorProto.FLOAT)
    return writer.node("Mul", mask, behind)


def _integer(writer: Writer, value: int) -> str:
    return writer.constant(np.array(value, dtype=np.int64))


def _apply(writer: Writer, value: str, layer: Layer) -> str:
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


def _pool(writer: Writer, mode: str, states: str, mask: str) -> str:
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


def _weights(writer: Writer, mode: str, mask: str) -> tuple[str, str]:
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


def _product(writer: Writer, left: str, right: str) -> str:
    """The scalar product of each row of two float32[n, length]: float32[n, 1]."""
    return writer.reshape(
        writer.node("MatMul", writer.reshape(left, 0, 1, -1), writer.reshape(right, 0, -1, 1)), 0, 1
    )


def _dense(writer: Writer, value: str, layer: Dense) -> str:
    from safetensors.numpy import load_file

    tensors = load_file(layer.file)
    value = writer.node("MatMul", value, writer.constant(tensors["linear.weight"].astype(np.float32).T))
    if layer.bias:
        value = writer.node("Add", value, writer.constant(tensors["linear.bias"].astype(np.float32)))
    if layer.activation == "Gelu":
        return writer.gelu(value)
    if layer.activation == "Silu":
        return writer.node("Mul", value, writer.node("Sigmoid", value))
    return writer.node(layer.activation, value) if layer.activation else value


def _normalize(writer: Writer, value: str) -> str:
    norm = writer.reduce("ReduceL2", value, 1, keepdims=1)
    return writer.node("Div", value, writer.node("Max", norm, writer.scalar(_MIN_NORM)))
