"""A map trained by the new encoder's ranking, in torch: from a closed form, bent by a hidden layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.versions.maps import Map, Vectors, to_unit

_HIDDEN = 512
_EPOCHS, _BATCH = 30, 256
_LEARNING_RATE = 1e-3
_TEMPERATURE = 0.05  # of a ranking's softmax: ten or so neighbours share most of the weight
_HELD_OUT = 0.1
_PATIENCE = 5


class _Network(nn.Module):
    """The map's affine part, trained on, and a residual hidden layer that starts at nothing."""

    def __init__(self, start: Map) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start.weight))
        self.bias = nn.Parameter(torch.tensor(start.bias))
        self.hidden = nn.Linear(start.weight.shape[0], _HIDDEN)
        self.narrow = nn.Parameter(torch.zeros(_HIDDEN, start.weight.shape[1]))

    def forward(self, vectors: Tensor) -> Tensor:
        bent = torch.relu(self.hidden(vectors)) @ self.narrow
        return nn.functional.normalize(vectors @ self.weight + self.bias + bent, dim=1)

    def fold(self, start: Map) -> Map:
        weight, bias, narrow = (_array(part) for part in (self.weight, self.bias, self.narrow))
        wide, shift = _array(self.hidden.weight).T.copy(), _array(self.hidden.bias)
        return replace(start, weight=weight, bias=bias, wide=wide, shift=shift, narrow=narrow)


def perceptron(start: Map, old: Vectors, new: Vectors, seed: int) -> Map:
    """Train `start`, old space → new space, on float32[n, d_old] and float32[n, d_new] of the same texts.

    Each text of a batch, as a query of the new encoder, ranks all others twice over: as the new encoder made them, and
    as the map does. Kullback-Leibler divergence from the ranking in which both score alike: so mapped vectors keep the
    new encoder's order and native ones' scale. Stops when held-out texts rank no better. The same vectors and seed
    give the same map on one machine with one number of threads.
    """
    torch.manual_seed(seed)
    order = np.random.default_rng(seed).permutation(len(old))
    cut = max(int(len(old) * _HELD_OUT), 10)
    held, kept = order[:cut], order[cut:]
    left, right = (torch.tensor(to_unit(vectors)) for vectors in (old, new))
    best, chosen, since = float("inf"), start, 0
    for network in _epochs(start, left, right, kept, seed):
        with torch.no_grad():
            loss = float(_divergence(network(left[held]), right[held]))
        since += 1
        if loss < best:
            best, chosen, since = loss, network.fold(start), 0
        if since >= _PATIENCE:
            break
    return chosen


def _epochs(start: Map, old: Tensor, new: Tensor, kept: np.ndarray, seed: int) -> Iterator[_Network]:
    """The network after each epoch, the first as it starts."""
    network = _Network(start)
    yield network
    generator = np.random.default_rng(seed)
    batches = max(1, len(kept) // _BATCH)
    optimizer = torch.optim.Adam(network.parameters(), _LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS * batches)
    for _ in range(_EPOCHS):
        for rows in np.array_split(generator.permutation(kept), batches):
            loss = _divergence(network(old[rows]), new[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        yield network


def _divergence(mapped: Tensor, native: Tensor) -> Tensor:
    """How far the ranking of mapped and native vectors together is from one in which both score alike."""
    truth = native @ native.T
    truth = truth.masked_fill(
        torch.eye(len(truth), dtype=torch.bool), -1e4
    )  # a text says nothing about itself
    scores = (native @ mapped.T).masked_fill(truth < -1, -1e4)
    teacher = (torch.cat([truth, truth], dim=1) / _TEMPERATURE).log_softmax(dim=1)
    student = (torch.cat([truth, scores], dim=1) / _TEMPERATURE).log_softmax(dim=1)
    return nn.functional.kl_div(student, teacher, log_target=True, reduction="batchmean")


def _array(tensor: Tensor) -> Vectors:
    array: Vectors = tensor.detach().numpy().copy()
    return array
