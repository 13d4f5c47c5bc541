"""Token Prepending (arXiv 2412.11556) inside the graph that torch exports: which state goes where, by ids and mask.

Before each of the layers START ≤ l < EXIT the slot's state becomes that of the row's last token: all tokens between
them then attend to what the whole text says, which causal attention hides from them. Padding on either side changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.encoders.decoders.spec import DecoderSpec
from pipeline.encoders.elastic import keep_layers, layers_in


@dataclass
class Slots:
    """Where slot and last token are in the rows of the batch that is running: set by `start`, read before layers."""

    slot: int
    bidirectional: bool
    at_slot: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # bool[n, length, 1]
    last: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # int64[n, 1, 1]

    def start(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Take a batch's ids and mask int64[n, length]; returns the mask that the transformer gets."""
        found = (ids == self.slot) & (mask > 0)
        self.at_slot = (found & (found.to(torch.int64).cumsum(dim=1) == 1)).unsqueeze(-1)
        self.last = (mask * torch.arange(mask.shape[1])).argmax(dim=1)[:, None, None]
        return seen_by_all(mask) if self.bidirectional else mask


def seen_by_all(mask: torch.Tensor) -> torch.Tensor:
    """What is added to attention's scores float32[n, 1, length, length] so that every token sees every other."""
    hidden = torch.where(mask > 0, 0.0, torch.finfo(torch.float32).min)
    return hidden[:, None, None, :].expand(-1, 1, mask.shape[1], -1)


def shorten(transformer: Any, decoder: DecoderSpec, slot: int) -> Slots:  # noqa: ANN401 - a transformers model
    """Leave the layers that run, in place, with the slot's state copied between them; returns what batches start."""
    slots = Slots(slot, decoder.attention == "bidirectional")
    layers = layers_in(transformer)

    def copy(_layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states, *others = inputs
        last = states.gather(1, slots.last.expand(-1, 1, states.shape[2]))
        return torch.where(slots.at_slot, last, states), *others

    for layer in list(layers)[decoder.start : decoder.exit]:
        layer.register_forward_pre_hook(copy)
    if decoder.out_layer < len(layers):
        keep_layers(transformer, decoder.out_layer)
    return slots
