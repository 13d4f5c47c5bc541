"""Poolings with weights of their own, as nodes of the graph's head: cross-attention with trained latents, at fp32.

Both are x + attention(norm(x)) and then x + feed-forward(norm(x)), the scores divided by the root of a head's width.
The latents are constants, and so is all that depends on them alone: that is multiplied out here, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.decoders.trained import (
    FEED_FORWARD_NORM,
    KEYS_VALUES,
    LATENTS,
    LATENTS_NORM,
    LAYERS,
    NARROW,
    OUT,
    QUERIES,
    STATES_NORM,
    WIDEN,
    load_trained,
)
from pipeline.encoders.folder import TrainedPooling
from pipeline.encoders.writer import Writer

# torch's LayerNorm adds this to the variance.
_EPSILON = 1e-5

Tensors = Mapping[str, NDArray[np.float32]]


def latent_attention(writer: Writer, states: str, trained: TrainedPooling) -> str:
    """Token states float32[n, length, hidden] that have each looked at the latents (arXiv 2405.17428, §3.1).

    softmax(QKᵀ)V has keys and values out of the latents: a state is multiplied with W_Q Kᵀ [hidden, heads · latents] at
    once, and its weights with V W_out [heads · latents, hidden], which is the same and takes fewer products.
    """
    tensors, heads = load_trained(trained), trained.heads
    hidden, count = tensors[OUT].shape[0], len(tensors[LATENTS])
    keys, values = (
        half.reshape(count, heads, -1).transpose(1, 0, 2)
        for half in np.split(_normed_latents(tensors) @ _wide(tensors[KEYS_VALUES]).T, 2, axis=1)
    )
    queries = _wide(tensors[QUERIES]).reshape(heads, -1, hidden).transpose(0, 2, 1)
    out = _wide(tensors[OUT]).reshape(hidden, heads, -1).transpose(1, 2, 0)
    to_scores = queries @ keys.transpose(0, 2, 1) * keys.shape[2] ** -0.5  # [heads, hidden, latents]
    to_scores = to_scores.transpose(1, 0, 2).reshape(hidden, -1)
    to_states = (values @ out).reshape(-1, hidden)
    normed = _norm(writer, states, tensors, STATES_NORM)
    scores = writer.reshape(writer.node("MatMul", normed, _constant(writer, to_scores)), 0, 0, heads, count)
    shares = writer.reshape(writer.node("Softmax", scores, axis=-1), 0, 0, -1)
    mixed = writer.node("MatMul", shares, _constant(writer, to_states))
    return _feed_forward(writer, writer.node("Add", mixed, states), tensors)


def multi_layer(writer: Writer, layers: Sequence[str], trained: TrainedPooling) -> str:
    """One vector float32[n, hidden] out of what each layer's states were pooled to, float32[n, hidden] each.

    Latents are queries, layers are keys and values, told apart by what is added to each; the vector is the mean of what
    the latents become (arXiv 2409.02727, §3.3).
    """
    tensors, heads = load_trained(trained), trained.heads
    joined = writer.node("Concat", *(writer.reshape(layer, 0, 1, -1) for layer in layers), axis=1)
    joined = writer.node("Add", joined, _constant(writer, tensors[LAYERS][: len(layers)]))
    joined = _norm(writer, joined, tensors, STATES_NORM)
    inner = len(tensors[QUERIES])
    queries = _normed_latents(tensors) @ _wide(tensors[QUERIES]).T * (inner // heads) ** -0.5
    queries = queries.reshape(len(queries), heads, -1).transpose(1, 0, 2)
    both = tensors[KEYS_VALUES]
    keys, values = (
        writer.node(
            "Transpose",
            writer.reshape(writer.node("MatMul", joined, _constant(writer, part.T)), 0, 0, heads, -1),
            perm=order,
        )
        for part, order in ((both[:inner], [0, 2, 3, 1]), (both[inner:], [0, 2, 1, 3]))
    )
    shares = writer.node("Softmax", writer.node("MatMul", _constant(writer, queries), keys), axis=-1)
    mixed = writer.node("Transpose", writer.node("MatMul", shares, values), perm=[0, 2, 1, 3])
    mixed = writer.node("MatMul", writer.reshape(mixed, 0, 0, -1), _constant(writer, tensors[OUT].T))
    latents = writer.node("Add", mixed, _constant(writer, tensors[LATENTS]))
    return writer.reduce("ReduceMean", _feed_forward(writer, latents, tensors), 1, keepdims=0)


def _feed_forward(writer: Writer, states: str, tensors: Tensors) -> str:
    """States + W₂ (a · gelu(b)) + b₂, where a and b are the halves of W₁ norm(states) + b₁ (GEGLU)."""
    normed = _norm(writer, states, tensors, FEED_FORWARD_NORM)
    values, gates = (
        writer.node(
            "Add", writer.node("MatMul", normed, _constant(writer, weight.T)), _constant(writer, bias)
        )
        for weight, bias in zip(
            np.split(tensors[f"{WIDEN}.weight"], 2), np.split(tensors[f"{WIDEN}.bias"], 2), strict=True
        )
    )
    gated = writer.node("Mul", values, writer.gelu(gates))
    narrowed = writer.node("MatMul", gated, _constant(writer, tensors[f"{NARROW}.weight"].T))
    narrowed = writer.node("Add", narrowed, _constant(writer, tensors[f"{NARROW}.bias"]))
    return writer.node("Add", narrowed, states)


def _norm(writer: Writer, states: str, tensors: Tensors, name: str) -> str:
    weight, bias = (_constant(writer, tensors[f"{name}.{part}"]) for part in ("weight", "bias"))
    return writer.node("LayerNormalization", states, weight, bias, axis=-1, epsilon=_EPSILON)


def _normed_latents(tensors: Tensors) -> NDArray[np.float64]:
    """float64[latents, hidden] behind their LayerNorm."""
    latents = _wide(tensors[LATENTS])
    centred = latents - latents.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt(centred.var(axis=1, keepdims=True) + _EPSILON)
    found: NDArray[np.float64] = normed * tensors[f"{LATENTS_NORM}.weight"] + tensors[f"{LATENTS_NORM}.bias"]
    return found


def _wide(values: NDArray[np.float32]) -> NDArray[np.float64]:
    return values.astype(np.float64)


def _constant(writer: Writer, values: NDArray[np.floating]) -> str:
    return writer.constant(values.astype(np.float32))
