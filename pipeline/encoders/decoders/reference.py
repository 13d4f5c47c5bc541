"""Vectors by the stock transformers model, for the gate and for tuning: hooks before its layers, indices by numpy.

Shares nothing with the exported graph but the checkpoint: all layers run, and the hidden state of the wanted one is
taken; rows run unpadded where all tokens see each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.encoders.decoders.spec import DecoderSpec
from pipeline.encoders.elastic import layers_in


def vectors(
    transformer: Any,  # noqa: ANN401 - a transformers model
    decoder: DecoderSpec,
    slot: int,
    ids: NDArray[np.int64],
    mask: NDArray[np.int64],
    unit: bool = True,
) -> NDArray[np.float32]:
    """float32[n, hidden] of rows ids and mask int64[n, length] padded on either side, of length 1 where `unit`."""
    found = hidden_states(transformer, decoder, slot, ids, mask)[decoder.out_layer]
    pooled = np.stack([pool(decoder.pooling, row[kept > 0]) for row, kept in zip(found, mask, strict=True)])
    if unit:
        pooled = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return pooled.astype(np.float32)


def hidden_states(
    transformer: Any,  # noqa: ANN401
    decoder: DecoderSpec,
    slot: int,
    ids: NDArray[np.int64],
    mask: NDArray[np.int64],
) -> list[NDArray[np.float32]]:
    """What goes into the first layer and what comes out of each, float32[n, length, hidden]; the last one normed."""
    if decoder.attention == "causal":
        return _run(transformer, decoder, slot, ids, mask, torch.from_numpy(mask))
    # each row by itself and without padding, no score hidden; what is padding stays zero
    layers = len(layers_in(transformer)) + 1
    found = [np.zeros((*ids.shape, transformer.config.hidden_size), np.float32) for _ in range(layers)]
    for row, kept in enumerate(mask > 0):
        alone = ids[row : row + 1, kept]
        seen = torch.zeros((1, 1, alone.shape[1], alone.shape[1]))
        new = _run(transformer, decoder, slot, alone, np.ones_like(alone), seen)
        for states, own in zip(found, new, strict=True):
            states[row, kept] = own[0]
    return found


def _run(
    transformer: Any,  # noqa: ANN401
    decoder: DecoderSpec,
    slot: int,
    ids: NDArray[np.int64],
    mask: NDArray[np.int64],
    seen: torch.Tensor,
) -> list[NDArray[np.float32]]:
    """The same of one batch; `seen` is what the model is given for a mask."""
    with torch.inference_mode(), _prepending(transformer, decoder, slot, ids, mask):
        said = transformer(
            input_ids=torch.from_numpy(ids), attention_mask=seen, output_hidden_states=True, use_cache=False
        )
    return [states.numpy() for states in said.hidden_states]


@contextmanager
def _prepending(
    transformer: Any,  # noqa: ANN401
    decoder: DecoderSpec,
    slot: int,
    ids: NDArray[np.int64],
    mask: NDArray[np.int64],
) -> Iterator[None]:
    """The slot's state replaced by the last token's before the layers that the spec names, for one batch."""
    pairs = _pairs(slot, ids, mask) if decoder.prepending else []

    def copy(_layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states = inputs[0].clone()
        for row, to, of in pairs:
            states[row, to] = inputs[0][row, of]
        return states, *inputs[1:]

    layers = list(layers_in(transformer))[decoder.start : decoder.exit] if pairs else []
    hooks = [layer.register_forward_pre_hook(copy) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _pairs(slot: int, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Sequence[tuple[int, int, int]]:
    """(row, where its slot is, where its last token is); a row without a slot has no entry."""
    found = []
    for row, (tokens, kept) in enumerate(zip(ids, mask, strict=True)):
        places = np.flatnonzero((tokens == slot) & (kept > 0))
        if len(places):
            found.append((row, int(places[0]), int(np.flatnonzero(kept)[-1])))
    return found


def pool(pooling: str, states: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64[hidden] out of a row's own tokens, float32[tokens, hidden]."""
    weights = np.arange(1.0, len(states) + 1) if pooling == "weighted-mean" else np.ones(len(states))
    if pooling in ("last", "eos"):
        weights[:-1] = 0
    mean: NDArray[np.float64] = weights @ states.astype(np.float64) / weights.sum()
    return mean
