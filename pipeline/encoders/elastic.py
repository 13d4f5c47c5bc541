"""Smaller encoders out of one model: the first dimensions of its vectors, the first of its layers.

Both are worth something for models that were trained for it: Matryoshka (arXiv 2205.13147) for dimensions, 2DMSE
(arXiv 2402.14776) and Starbucks (arXiv 2410.13230) for layers too. A slice comes before the normalisation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.folder import Dense, Head, ModelFolder, Slice
from pipeline.errors import EncoderError, UsageError

_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_HIDDEN = ("hidden_size", "d_model", "dim", "n_embd")
_FINAL_NORMS = ("final_layer_norm", "final_layernorm", "final_norm", "ln_f", "norm")


def dims_of(folder: ModelFolder) -> int:
    """The length of the vectors that a model makes."""
    for layer in reversed(folder.head.layers):
        if isinstance(layer, Dense):
            return layer.out_features
        if isinstance(layer, Slice):
            return layer.dims
    return hidden_of(folder) * len(folder.head.pooling)


def hidden_of(folder: ModelFolder) -> int:
    """The length of a token's state."""
    return _number(folder, _HIDDEN, "hidden size")


def sliced(folder: ModelFolder, dims: int) -> ModelFolder:
    """The model with vectors of their first `dims` dimensions, normalised after that if they are; 0 takes all."""
    whole = dims_of(folder)
    if dims in (0, whole):
        return folder
    if dims > whole:
        raise UsageError(
            f"encoder.dims = {dims}, and the model's vectors have {whole}",
            f"At most {whole}",
            "Lower it, or leave it out",
        )
    layers = folder.head.layers
    end = len(layers) - 1 if layers and layers[-1] == "normalize" else len(layers)
    return replace(folder, head=replace(folder.head, layers=(*layers[:end], Slice(dims), *layers[end:])))


def check_layers(folder: ModelFolder, layers: int) -> int:
    """How many layers run, 0 for all of them. Raises UsageError where the model has fewer than `layers`."""
    if not layers:
        return 0
    if folder.format == "onnx":
        raise UsageError(
            f"encoder.layers = {layers}, and {folder.root} brings an ONNX graph alone",
            "A model's weights as safetensors, out of which a graph of some layers is made",
            "Leave encoder.layers out, or fetch the model's weights",
        )
    whole = layers_of(folder)
    if layers > whole:
        raise UsageError(
            f"encoder.layers = {layers}, and the model has {whole}",
            f"At most {whole}",
            "Lower it, or leave it out",
        )
    return 0 if layers == whole else layers


def layers_of(folder: ModelFolder) -> int:
    """How many layers the model has."""
    return _number(folder, _LAYERS, "number of layers")


def slice_vectors(vectors: NDArray[np.floating], head: Head) -> NDArray[np.floating]:
    """The model's own vectors float[n, ·] as a slice in its head makes them, float[n, dims]."""
    for number, layer in enumerate(head.layers):
        if isinstance(layer, Slice):
            vectors = vectors[:, : layer.dims]
            if "normalize" in head.layers[number:]:
                vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def keep_layers(transformer: Any, layers: int) -> None:  # noqa: ANN401 - a transformers model
    """Leave only the first layers of a transformer, in place: its token states become those behind them.

    A norm after the last layer belongs to that one (as `hidden_states` has it), so it goes too.
    """
    import torch

    owner, name, found = _list_of_layers(transformer)
    setattr(owner, name, found[:layers])
    for norm in _FINAL_NORMS:
        if isinstance(getattr(owner, norm, None), torch.nn.Module):
            setattr(owner, norm, torch.nn.Identity())


def layers_in(transformer: Any) -> Any:  # noqa: ANN401 - a torch.nn.ModuleList
    """A transformer's layers, in order."""
    return _list_of_layers(transformer)[2]


def _list_of_layers(transformer: Any) -> tuple[Any, str, Any]:  # noqa: ANN401
    """The layers, the module that has them, and under which name."""
    import torch

    config = transformer.config.get_text_config()
    lists = [
        (owner, name, child)
        for owner in transformer.modules()
        for name, child in owner.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) == config.num_hidden_layers
    ]
    if len(lists) != 1:
        raise EncoderError(
            f"a {config.model_type} model with {len(lists)} lists of {config.num_hidden_layers} layers",
            "A transformer with its layers in one list",
            "Leave encoder.layers and encoder.decoder out",
        )
    return lists[0]


def _number(folder: ModelFolder, names: tuple[str, ...], what: str) -> int:
    config = folder.config.get("text_config") or folder.config
    found = next((config[key] for key in names if isinstance(config.get(key), int)), None)
    if found is None:
        raise EncoderError(
            f"{folder.root} names no {what} in config.json",
            f"One of {', '.join(names)}",
            "Choose another model",
        )
    return int(found)
