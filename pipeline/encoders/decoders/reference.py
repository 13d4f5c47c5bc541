"""Vectors by the stock transformers model, for the gate and for tuning: hooks before its layers, indices by numpy.

Shares nothing with the exported graph but the checkpoint: all layers run, and the hidden state of the wanted one is
taken; rows run unpadded where all tokens see each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.encoders.decoders.spec import DecoderSpec
from pipeline.encoders.decoders.trained import (
    FEED_FORWARD_NORM,
    KEYS_VALUES,
    LATENT,
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
from pipeline.encoders.decoders.wording import LeftOut
from pipeline.encoders.elastic import layers_in
from pipeline.encoders.folder import TrainedPooling


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


def trained_vectors(
    transformer: Any,  # noqa: ANN401
    decoder: DecoderSpec,
    left_out: Sequence[LeftOut],
    weights: Weights,
    ids: NDArray[np.int64],
    mask: NDArray[np.int64],
    unit: bool = True,
) -> NDArray[np.float32]:
    """The same by a pooling with weights of its own, where `left_out` says which rows begin with tokens not pooled."""
    layers = hidden_states(transformer, decoder, -1, ids, mask)
    pooled = []
    for row, kept in enumerate(mask > 0):
        first = _skipped(left_out, ids[row, kept].tolist())
        own = [torch.from_numpy(states[row, kept]) for states in layers[1:]]
        pooled.append(weights.pool(own, first, decoder.attention == "bidirectional").numpy())
    vectors = np.stack(pooled)
    if unit:
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def _skipped(left_out: Sequence[LeftOut], row: list[int]) -> int:
    return max((one.tokens for one in left_out if tuple(row[: len(one.begins)]) == one.begins), default=0)


@dataclass(frozen=True, eq=False)
class Weights:
    """The tensors of a trained pooling, float32, run by torch in the order of its authors' code."""

    trained: TrainedPooling
    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def load(cls, trained: TrainedPooling) -> Weights:
        """Read them out of their files."""
        return cls(trained, {name: torch.from_numpy(value) for name, value in load_trained(trained).items()})

    @torch.inference_mode()
    def pool(self, layers: Sequence[torch.Tensor], first: int, mean: bool) -> torch.Tensor:
        """float32[hidden] out of one text's states behind each layer, float32[tokens, hidden] each.

        Latent attention takes those of the last layer, without the `first` ones, multi-layer pooling their means or
        the last token's.
        """
        latents = self.tensors[LATENTS]
        known = self._norm(latents, LATENTS_NORM)
        if self.trained.kind == LATENT:
            states = layers[-1]
            seen = self._attend(self._norm(states, STATES_NORM), known)
            return self._feed_forward(seen + states)[first:].mean(dim=0)
        joined = torch.stack([states.mean(dim=0) if mean else states[-1] for states in layers])
        joined = joined + self.tensors[LAYERS][: len(joined)]
        seen = self._attend(known, self._norm(joined, STATES_NORM))
        return self._feed_forward(seen + latents).mean(dim=0)

    def _attend(self, queries: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """What queries float32[n, hidden] see of a context float32[m, hidden]."""
        keys, values = (context @ self.tensors[KEYS_VALUES].T).chunk(2, dim=-1)
        asked, keys, values = (
            each.reshape(len(each), self.trained.heads, -1).transpose(0, 1)
            for each in (queries @ self.tensors[QUERIES].T, keys, values)
        )
        seen = torch.nn.functional.scaled_dot_product_attention(asked, keys, values)
        return seen.transpose(0, 1).flatten(1) @ self.tensors[OUT].T

    def _feed_forward(self, states: torch.Tensor) -> torch.Tensor:
        wide = torch.nn.functional.linear(self._norm(states, FEED_FORWARD_NORM), *self._linear(WIDEN))
        values, gates = wide.chunk(2, dim=-1)
        return (
            torch.nn.functional.linear(values * torch.nn.functional.gelu(gates), *self._linear(NARROW))
            + states
        )

    def _norm(self, states: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(states, states.shape[-1:], *self._linear(name))

    def _linear(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]


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
