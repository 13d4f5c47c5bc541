"""A transformer whose positions reach beyond its own: what torch exports, and the reference that the gate goes by.

The exported modules compute positions of a whole batch from its mask; the reference puts the rows of one text, made by
numpy, into the model as it is, and runs that text alone. Neither shares code with the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.encoders.long import LongSpec, position_rows, sharpness, stretched
from pipeline.errors import EncoderError

# The projection of queries, by its name in the models that have a table of positions.
_QUERIES = ("query", "q", "q_lin")
_BUFFERS = ("position_ids", "token_type_ids")


@dataclass
class Places:
    """Where tokens are in the rows of the batch that is running: set by `start`, read by the modules below."""

    window: int
    index: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # int64[n, length], from 0
    count: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # int64[n, 1] tokens

    def start(self, _ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Take a batch's attention mask int64[n, length] and return it; padding counts as its row's last token."""
        self.count = mask.sum(dim=1, keepdim=True)
        self.index = torch.clamp(mask.cumsum(dim=1) - 1, min=0)
        return mask


class Rows(torch.nn.Module):
    """In the place of a table of positions: float32[n, length, hidden] by the batch's places, whatever ids come."""

    def __init__(self, long: LongSpec, table: torch.Tensor, places: Places) -> None:
        super().__init__()
        self._long, self._places = long, places
        self._last = len(table) - 1
        rows = table.numpy() if long.extension != "pi" else stretched(table.numpy(), long.factor)
        self.weight = torch.nn.Parameter(torch.from_numpy(rows.copy()), requires_grad=False)

    def forward(self, _ids: torch.Tensor) -> torch.Tensor:
        """Whole numbers alone decide which rows: they are exact at any precision."""
        index, count = self._places.index, self._places.count
        window, method = self._long.window, self._long.extension
        long = count > window
        if method == "gp":
            return self._look_up(index // ((count + window - 1) // window))
        if method == "rp":
            return self._look_up(index % window)
        if method == "pi":
            return self._look_up(torch.where(long, index, index * self._long.factor))
        reach = torch.where(long, count - 1, window - 1)
        scaled = index * (window - 1)
        below = scaled // reach
        share = ((scaled - below * reach).to(torch.float32) / reach.to(torch.float32)).unsqueeze(-1)
        above = torch.clamp(below + 1, max=self._last)
        return self._look_up(below) * (1 - share) + self._look_up(above) * share

    def _look_up(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(rows, self.weight)


def extend(transformer: Any, long: LongSpec, offset: int, tokens: int) -> Places:  # noqa: ANN401 - a model
    """Make a transformer take texts of so many tokens, in place; returns what each batch's mask must be given to."""
    places = Places(long.window)
    embeddings = _embeddings(transformer)
    table = embeddings.position_embeddings.weight.detach()[offset : offset + long.window]
    embeddings.position_embeddings = Rows(long, table, places)
    _lengthen(embeddings, tokens + offset)
    if long.attention_scaling:

        def sharpen(_module: torch.nn.Module, _inputs: Any, queries: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
            count = places.count
            factor = torch.log(count.to(torch.float32)) / np.log(long.window)
            return queries * torch.where(count > long.window, factor, 1.0).unsqueeze(-1)

        for query in _queries(transformer):
            query.register_forward_hook(sharpen)
    return places


@contextmanager
def positioned(transformer: Any, long: LongSpec, offset: int, tokens: int) -> Iterator[None]:  # noqa: ANN401
    """The model as it takes one text of so many tokens, alone and unpadded: its table holds just that text's rows."""
    embeddings = _embeddings(transformer)
    table, buffers = embeddings.position_embeddings, dict(embeddings.named_buffers(recurse=False))
    own: NDArray[np.float32] = table.weight.detach().numpy()
    rows = position_rows(long, own[offset : offset + long.window], tokens).astype(np.float32)
    queries = [part for query in _queries(transformer) for part in (query.weight, query.bias)]
    own_queries = [part.data for part in queries]
    try:
        weight = torch.from_numpy(np.concatenate([own[:offset], rows]))
        embeddings.position_embeddings = torch.nn.Embedding(len(weight), weight.shape[1], _weight=weight)
        _lengthen(embeddings, tokens + offset)
        for part in queries:
            part.data = part.data * sharpness(long, tokens)
        yield
    finally:
        for part, data in zip(queries, own_queries, strict=True):
            part.data = data
        embeddings.position_embeddings = table
        for name, buffer in buffers.items():
            embeddings.register_buffer(name, buffer, persistent=False)


def _embeddings(transformer: Any) -> Any:  # noqa: ANN401
    found = [
        m
        for m in transformer.modules()
        if isinstance(getattr(m, "position_embeddings", None), torch.nn.Embedding)
    ]
    if len(found) != 1:
        raise EncoderError(
            f"a {transformer.config.model_type} model with {len(found)} tables of positions",
            "One table of positions",
            "Set encoder.long to split or pcw",
        )
    return found[0]


def _queries(transformer: Any) -> list[Any]:  # noqa: ANN401
    found = [
        module
        for name, module in transformer.named_modules()
        if name.rpartition(".")[2] in _QUERIES and isinstance(module, torch.nn.Linear)
    ]
    if len(found) != transformer.config.num_hidden_layers:
        raise EncoderError(
            f"a {transformer.config.model_type} model with {len(found)} projections of queries in "
            f"{transformer.config.num_hidden_layers} layers",
            "One in each layer",
            "Leave encoder.attention_scaling out",
        )
    return found


def _lengthen(embeddings: Any, tokens: int) -> None:  # noqa: ANN401
    """Buffers of ids that forward slices, for so many tokens."""
    made = {
        "position_ids": torch.arange(tokens)[None],
        "token_type_ids": torch.zeros((1, tokens), dtype=torch.long),
    }
    for name in _BUFFERS:
        if name in dict(embeddings.named_buffers(recurse=False)):
            embeddings.register_buffer(name, made[name], persistent=False)
