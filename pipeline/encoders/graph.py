"""A folder that brings an ONNX graph and no other weights: the graph gets a head, and numpy says what is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from safetensors.numpy import load_file

from pipeline.encoders.folder import Dense, Head, ModelFolder, Slice
from pipeline.encoders.head import INPUTS
from pipeline.encoders.parity import Inputs
from pipeline.encoders.runtime import open_session
from pipeline.errors import EncoderError

_STATES = ("last_hidden_state", "token_embeddings")
_TYPES = "token_type_ids"


def from_graph(
    folder: ModelFolder, inputs: Inputs
) -> tuple[onnx.ModelProto, Sequence[str], list[NDArray[np.floating]]]:
    """The folder's graph, the name of its token states alone, and the vectors of these inputs by numpy.

    Token type ids become zeros inside the graph. Raises EncoderError for a graph with other inputs or outputs.
    """
    model, bare = _load(folder)
    states = _find_states(folder, model)
    reference = _vectors(folder, bare, states, inputs)
    if any(value.name == _TYPES for value in model.graph.input):
        _zero_token_types(model)
    return model, (states,), reference


def by_graph(folder: ModelFolder, inputs: Inputs) -> list[NDArray[np.floating]]:
    """The vectors of these inputs by the folder's own graph, and numpy after it."""
    model, bare = _load(folder)
    return _vectors(folder, bare, _find_states(folder, model), inputs)


def _load(folder: ModelFolder) -> tuple[onnx.ModelProto, Any]:
    try:
        model = onnx.load(str(folder.weights[0]))
        return model, open_session(folder.weights[0], "cpu", optimise=False)
    except Exception as error:
        raise EncoderError(
            f"{folder.weights[0]} cannot be loaded: {error}",
            "An ONNX graph and its data",
            "Fetch the model again",
        ) from error


def _vectors(
    folder: ModelFolder,
    bare: Any,  # noqa: ANN401 - an onnxruntime.InferenceSession
    states: str,
    inputs: Inputs,
) -> list[NDArray[np.floating]]:
    vectors: list[NDArray[np.floating]] = []
    for ids, mask in inputs:
        feeds = {"input_ids": ids, "attention_mask": mask, _TYPES: np.zeros_like(ids)}
        taken = {value.name: feeds[value.name] for value in bare.get_inputs()}
        vectors.append(apply_head(folder.head, bare.run([states], taken)[0], mask))
    return vectors


def apply_head(head: Head, states: NDArray[np.floating], mask: NDArray[np.int64]) -> NDArray[np.floating]:
    """What the head makes of token states float[n, length, hidden], row by row in numpy: float64[n, dims]."""
    rows = [row[real.astype(bool)].astype(np.float64) for row, real in zip(states, mask, strict=True)]
    vectors = np.stack([np.concatenate([_pool(mode, row) for mode in head.pooling]) for row in rows])
    for layer in head.layers:
        if isinstance(layer, Dense):
            vectors = _dense(layer, vectors)
        elif isinstance(layer, Slice):
            vectors = vectors[:, : layer.dims]
        else:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def _pool(mode: str, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64[hidden] out of one text's token states float64[length, hidden]."""
    length = len(tokens)
    weights = np.arange(1, length + 1)
    pooled: dict[str, NDArray[np.float64]] = {
        "cls": tokens[0],
        "lasttoken": tokens[-1],
        "max": tokens.max(axis=0),
        "mean": tokens.mean(axis=0),
        "mean_sqrt_len_tokens": tokens.sum(axis=0) / np.sqrt(length),
        "weightedmean": weights @ tokens / weights.sum(),
    }
    return pooled[mode]


def _dense(layer: Dense, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    import torch

    tensors = load_file(layer.file)
    value = vectors @ tensors["linear.weight"].T.astype(np.float64)
    if layer.bias:
        value = value + tensors["linear.bias"]
    if not layer.activation:
        return value
    functions = {
        "Tanh": torch.tanh,
        "Relu": torch.relu,
        "Sigmoid": torch.sigmoid,
        "Gelu": torch.nn.functional.gelu,
        "Silu": torch.nn.functional.silu,
    }
    activated: NDArray[np.float64] = functions[layer.activation](torch.from_numpy(value)).numpy()
    return activated


def _find_states(folder: ModelFolder, model: onnx.ModelProto) -> str:
    """The name of the graph's token states float[n, length, hidden]."""
    inputs = {value.name for value in model.graph.input} - {value.name for value in model.graph.initializer}
    outputs = [value.name for value in model.graph.output]
    states = next((name for name in _STATES if name in outputs), None)
    if states is None or not set(INPUTS) <= inputs <= {*INPUTS, _TYPES}:
        raise EncoderError(
            f"{folder.weights[0]} takes {', '.join(sorted(inputs))} and gives {', '.join(outputs)}",
            f"Inputs {' and '.join(INPUTS)} (and maybe {_TYPES}), an output named {' or '.join(_STATES)}",
            "Export the model again for the task of feature extraction",
        )
    return states


def _zero_token_types(model: onnx.ModelProto) -> None:
    """Make token_type_ids a value of the graph, zeros shaped like input_ids, instead of an input."""
    kept = [value for value in model.graph.input if value.name != _TYPES]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    zero = numpy_helper.from_array(np.zeros(1, dtype=np.int64))
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["head.ids_shape"], name="head.ids_shape"),
        helper.make_node("ConstantOfShape", ["head.ids_shape"], [_TYPES], name="head.types", value=zero),
        *model.graph.node,
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
