"""SelfExtend (arXiv 2401.01325; both directions as in LongEmbed, §4.2), and sharper attention, for rotary positions.

Near tokens are as far apart as ever. Farther ones are told apart by groups, so that no distance is beyond the window.
A text within the window is computed as the model computes it. The exported modules work on a whole batch; the reference
runs one text alone and, up to 2,048 tokens, turns every pair of them by a distance that numpy made: neither shares code
with the other. For longer texts, where every pair takes too long, it is what is exported, run by torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from pipeline.encoders.extended import Places
from pipeline.encoders.long import SELF_EXTEND, LongSpec, relative_places, sharpness
from pipeline.errors import EncoderError

# Under this name transformers looks attention up; under the other its modules hold what is done.
_NAME = "headwater"
_ATTENDING = "attending"
_TURN = "apply_rotary_pos_emb"
# Attention scores, a row of a batch, that are held at once; beyond them heads are computed one after the other.
_SCORES = 1 << 26
_LONGEST_BY_PAIR = 2048

Turns = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines float[n, length, width], as the model makes them of positions."""

Turn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Queries and keys float[n, heads, length, width], turned."""


@dataclass
class Batch:
    """What layers know of the batch that is running: its tokens, and the angles of their positions."""

    places: Places
    positions: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # int64[n, length]
    angles: Callable[[torch.Tensor], Turns] | None = None  # of the layers that see all tokens
    apart: bool = False  # whether layers that see near tokens alone have angles of their own


class Angles(torch.nn.Module):
    """In the place of a model's rotary module: layers that turn queries and keys themselves get angles of zero."""

    def __init__(self, own: torch.nn.Module, batch: Batch) -> None:
        super().__init__()
        self.own, self._batch = own, batch

    def forward(
        self, states: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None
    ) -> Turns:
        """What the layers are given."""
        kinds = () if layer_type is None else (layer_type,)
        turns: Turns = self.own(states, position_ids, *kinds)
        self._batch.apart = layer_type is not None
        if layer_type == "sliding_attention":
            return turns
        self._batch.positions = (
            self._batch.places.index
        )  # groups are counted from the text, not from its padding
        self._batch.angles = lambda positions: self.own(states, positions, *kinds)
        return torch.ones_like(turns[0]), torch.zeros_like(turns[1])


@dataclass(frozen=True, eq=False)
class Attending:
    """How one layer attends, as it is exported: rows of any length, each by its own number of tokens.

    near: it sees near tokens alone, and keeps its distances. heads: how many are computed at once.
    """

    long: LongSpec
    batch: Batch
    turn: Turn
    near: bool
    heads: int

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        causal: bool,
    ) -> torch.Tensor:
        """float[n, heads, length, width]; queries and keys come as they were before positions."""
        if not self.near and self.long.attention_scaling:
            query = query * self._sharpness()
        own, keys = self._plain(query, key)
        value, keys, mask = _repeat(value, query), _repeat(keys, query), _seen(mask, query, causal)
        if self.near or self.long.extension != SELF_EXTEND:
            return scaled_dot_product_attention(own, keys, value, attn_mask=mask, scale=scale)
        one_sided = causal and mask.dtype == torch.bool
        lefts, rights, grouped = self._by_groups(query, key, one_sided)
        parts = []
        for at in range(0, query.shape[1], self.heads):
            some = slice(at, at + self.heads)
            scores = self._far(
                own[:, some] @ keys[:, some].mT, lefts[:, some] @ grouped[:, some].mT, left=True
            )
            if not one_sided:
                scores = self._far(scores, rights[:, some] @ grouped[:, some].mT, left=False)
            # In long rows scores come as the mask, and those of the product are zero; in short ones the mask is.
            bias = torch.where(self._long(), scores * scale, 0.0)
            silent = torch.where(self._long(), 0.0, own[:, some])
            parts.append(
                scaled_dot_product_attention(
                    silent, keys[:, some], value[:, some], attn_mask=_added(mask, bias), scale=scale
                )
            )
        return torch.cat(parts, dim=1)

    def _plain(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As the model turns them."""
        if self.near and self.batch.apart:
            return query, key
        return self.turn(query, key, *self._angles(self.batch.positions))

    def _angles(self, positions: torch.Tensor) -> Turns:
        assert self.batch.angles is not None, "the rotary module runs before the layers"
        return self.batch.angles(positions)

    def _by_groups(
        self, query: torch.Tensor, key: torch.Tensor, one_sided: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries for keys far to the left, and to the right, and the keys, turned by the numbers of their groups."""
        group, near = self.long.groups
        numbers, nearer = self.batch.positions // group, near - near // group
        lefts, keys = self.turn(query, key, *self._angles(numbers + nearer))[0], key
        rights = lefts if one_sided else self.turn(query, key, *self._angles(numbers - nearer))[0]
        keys = self.turn(query, key, *self._angles(numbers))[1]
        return lefts, rights, _repeat(keys, query)

    def _far(self, scores: torch.Tensor, others: torch.Tensor, left: bool) -> torch.Tensor:
        """Scores, and the others where keys are far on this side."""
        _, near = self.long.groups
        apart = (self.batch.positions[:, None, :] - self.batch.positions[:, :, None])[:, None]
        return torch.where(apart <= -near if left else apart >= near, others, scores)

    def _long(self) -> torch.Tensor:
        """Which rows are longer than the window, bool[n, 1, 1, 1]."""
        return (self.batch.places.count > self.long.window)[:, None, None]

    def _sharpness(self) -> torch.Tensor:
        factor = torch.log(self.batch.places.count.to(torch.float32)) / np.log(self.long.window)
        return torch.where(self._long(), factor[:, None, None], 1.0)


class AttendingByPair(Attending):
    """The reference: one text of more tokens than the window, each pair of them turned by its own distance."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        causal: bool,
    ) -> torch.Tensor:
        """float[1, heads, length, width]."""
        tokens, mask = query.shape[2], _seen(mask, query, causal)
        if self.near:
            own, keys = self._plain(query, key)
            value, keys = _repeat(value, query), _repeat(keys, query)
            return scaled_dot_product_attention(own, keys, value, attn_mask=mask, scale=scale)
        places = np.arange(tokens)
        distances = places[None] - places[:, None]
        if self.long.extension == SELF_EXTEND:
            distances = relative_places(tokens, *self.long.groups)
        scores = torch.empty((*query.shape[:3], tokens))
        for row, apart in enumerate(torch.from_numpy(distances)):
            turned = _repeat(self.turn(key, key, *self._angles(apart[None]))[1], query)
            scores[:, :, row] = (turned @ query[:, :, row, :, None])[..., 0]
        scores = _added(mask, scores * scale * sharpness(self.long, tokens))
        return scores.softmax(dim=-1) @ _repeat(value, query)


def _repeat(states: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Keys or values for each head of the queries."""
    n, shared, length, width = states.shape
    times = query.shape[1] // shared
    if times == 1:
        return states
    return states[:, :, None].expand(n, shared, times, length, width).reshape(n, -1, length, width)


def _seen(mask: torch.Tensor | None, query: torch.Tensor, causal: bool) -> torch.Tensor:
    """The mask; torch leaves it out where it hides nothing, or only what comes later, but never when it exports."""
    if mask is not None:
        return mask
    full = torch.ones((query.shape[2], query.shape[2]), dtype=torch.bool)
    return full.tril() if causal else full


def _added(mask: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Scores where the mask, bool or what is added, lets tokens see each other."""
    return (
        torch.where(mask, scores, torch.finfo(scores.dtype).min)
        if mask.dtype == torch.bool
        else scores + mask
    )


def _attend(
    module: Any,  # noqa: ANN401 - a layer's attention
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_others: Any,  # noqa: ANN401 - what other kinds of attention need
) -> tuple[torch.Tensor, None]:
    attending: Attending = getattr(module, _ATTENDING)
    states = attending(query, key, value, attention_mask, scaling, module.is_causal)
    return states.transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)


def extend_rotary(transformer: Any, long: LongSpec, tokens: int) -> Places:  # noqa: ANN401 - a transformers model
    """Make a transformer with rotary positions take texts of so many tokens, in place; returns what batches start."""
    places = Places(long.window)
    _install(transformer, long, tokens, Attending, places)
    return places


@contextmanager
def positioned_rotary(transformer: Any, long: LongSpec, tokens: int) -> Iterator[None]:  # noqa: ANN401
    """The model as it takes one text of so many tokens, alone and unpadded."""
    if tokens <= long.window:
        yield
        return
    places = Places(long.window)
    mask = torch.ones((1, tokens), dtype=torch.int64)
    places.start(mask, mask)
    own = transformer.config._attn_implementation
    kind = AttendingByPair if tokens <= _LONGEST_BY_PAIR else Attending
    parent, name = _install(transformer, long, tokens, kind, places)
    try:
        yield
    finally:
        setattr(parent, name, getattr(parent, name).own)
        transformer.config._attn_implementation = own


def _install(
    transformer: Any,  # noqa: ANN401
    long: LongSpec,
    tokens: int,
    kind: type[Attending],
    places: Places,
) -> tuple[Any, str]:
    """Put rotary module and attention in place; returns where the rotary module is."""
    rotary = [
        (parent, name, child)
        for parent in transformer.modules()
        for name, child in parent.named_children()
        if type(child).__name__.endswith("RotaryEmbedding")
    ]
    layers: list[tuple[Any, Any]] = [
        (module, getattr(sys.modules[type(module).__module__], _TURN, None))
        for module in transformer.modules()
        if type(module).__name__.endswith("Attention") and hasattr(module, "is_causal")
    ]
    config = transformer.config
    if len(rotary) != 1 or len(layers) != config.num_hidden_layers or not all(turn for _, turn in layers):
        raise EncoderError(
            f"a {config.model_type} model with {len(rotary)} rotary modules and attention that is not understood",
            "One rotary module, and in each layer attention that turns queries and keys by it",
            "Set encoder.long to ntk or pcw, and leave encoder.attention_scaling out",
        )
    parent, name, own = rotary[0]
    batch = Batch(places)
    setattr(parent, name, Angles(own, batch))
    heads = max(1, _SCORES // tokens**2)
    for module, turn in layers:
        near = bool(getattr(module, "sliding_window", None))
        setattr(module, _ATTENDING, kind(long, batch, turn, near, heads))
    config._attn_implementation = _NAME
    return parent, name


def see_all(transformer: Any, window: int) -> None:  # noqa: ANN401
    """Switch a window off that all layers have (Mistral), in place: SelfExtend is for those that see all tokens.

    Raises EncoderError where that would change texts of `window` tokens, which are to keep their vectors.
    """
    config = transformer.config
    sliding = getattr(config, "sliding_window", None)
    if not sliding or getattr(config, "layer_types", None):
        return
    if sliding < window:
        raise EncoderError(
            f"a {config.model_type} model whose layers all see {sliding} tokens, and {window} positions",
            "Layers that see all tokens up to the window, or a kind of model whose window is known to slide",
            "Set encoder.long to ntk or pcw",
        )
    config.sliding_window = None
