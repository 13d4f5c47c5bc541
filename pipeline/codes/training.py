"""Training codes from float vectors alone: a contrastive loss on pairs, and the ranking that the floats give.

No text and no encoder is needed. The encoder's own ranking is the teacher; where no pairs are given, a vector's pair
is one of its nearest neighbours. Held-out vectors, as queries over the others, say after how many epochs to stop, none
included where blocks are linear; the same training then runs on all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codes.binarizer import Binarizer, to_unit
from pipeline.codes.network import BinarizerNetwork
from pipeline.codes.packing import to_values, unpack
from pipeline.codes.untrained import check_sample, make_binarizer
from pipeline.errors import EncoderError

LEAST_VECTORS = 256

_HELD_OUT, _MOST_HELD_OUT = 0.1, 2000
_HARD_NEGATIVES = 5  # a row's positive stands against this many, as in the paper's code
_RECALL_AT = 10
_MOST_GRADIENT = 5.0
_MOMENTUM, _WEIGHT_DECAY = 0.9, 1e-3


@dataclass(frozen=True)
class TrainingOptions:
    """How codes are trained; every field has a working default.

    dims, bits: width of a plane (0: that of the vectors) and planes. start: what linear blocks begin at. hidden,
    layers: hidden layers of a block; 0 for linear blocks, the paper has one of 2048. contrastive, distil: weights of
    the two losses. pair_temperature, list_temperature: of the contrastive loss (the paper's), and of the floats'
    ranking. optimizer: Adam, or the paper's: Nesterov's momentum .9, weight decay 1e-3. epochs: at most; patience:
    epochs without a better held-out recall until it ends.
    """

    dims: int = 0
    bits: int = 1
    start: Literal["itq", "rotation"] = "itq"
    hidden: int = 0
    layers: int = 1
    contrastive: float = 0.0
    distil: float = 1.0
    pair_temperature: float = 0.05
    list_temperature: float = 0.1
    batch: int = 512
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-4
    epochs: int = 30
    patience: int = 10
    neighbours: int = 5
    seed: int = 0


@dataclass(frozen=True)
class TrainingReport:
    """What a training did.

    recall: held-out recall@10 against the floats, after each epoch on 90 % of the vectors, first the start's; of
    coded queries where only the contrastive loss was trained on. best_epoch: how many epochs the codes had, on all
    vectors.
    """

    vectors: int
    pairs: int
    recall: tuple[float, ...]
    best_epoch: int
    seconds: float


Watch = Callable[[int, float | None], None]
"""Called after each epoch with its number and held-out recall@10; None in the training on all vectors that follows."""


def train_codes(
    vectors: NDArray[np.float32],
    options: TrainingOptions,
    pairs: NDArray[np.int64] | None = None,
    encoder_version: str = "",
    watch: Watch = lambda _epoch, _recall: None,
) -> tuple[Binarizer, TrainingReport]:
    """Train a binarizer on float32[n, dims] and, if given, positive pairs of their rows int64[p, 2].

    The same vectors, options and seed give the same codes on one machine with one number of threads. Raises
    EncoderError for fewer than 256 vectors, NaN, or a dimension that is the same in all of them.
    """
    check_sample(vectors, LEAST_VECTORS)
    since = time.perf_counter()
    unit = to_unit(vectors.astype(np.float64)).astype(np.float32)
    everything = np.arange(len(unit))
    held, kept = _split(len(unit), options.seed)
    start = _start(vectors[kept], options)
    coded = not options.distil  # then nothing teaches the projection of float queries
    recall = [recall_of(start, unit[held], unit[kept], coded)]
    linked = _pairs(unit, kept, pairs, options)
    for epoch, trained in _epochs(start, unit, linked, options):
        recall.append(recall_of(trained, unit[held], unit[kept], coded))
        watch(epoch, recall[-1])
        if epoch - int(np.argmax(recall)) >= options.patience:
            break
    # Hidden layers do not begin at the start: it is not theirs to fall back on.
    first = 1 if options.hidden and options.epochs else 0
    best = first + int(np.argmax(recall[first:]))
    linked = _pairs(unit, everything, pairs, options)
    made = _start(vectors, options)
    if best:
        for epoch, trained in _epochs(made, unit, linked, options):
            watch(epoch, None)
            if epoch == best:
                made = trained
                break
    spec = replace(made.spec, method="learned", encoder_version=encoder_version)
    seconds = time.perf_counter() - since
    return replace(made, spec=spec), TrainingReport(len(unit), len(linked), tuple(recall), best, seconds)


def recall_of(
    binarizer: Binarizer, queries: NDArray[np.float32], documents: NDArray[np.float32], coded: bool = False
) -> float:
    """Recall@10 of float queries, or coded ones, on coded documents, against the floats; both of length 1."""
    codes = binarizer.encode(documents)
    values = to_values(unpack(codes.packed, binarizer.spec.bits)).astype(np.float32)
    if coded:
        asked = to_values(unpack(binarizer.encode(queries).packed, binarizer.spec.bits)).astype(np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
    else:
        asked = binarizer.project(queries)
        values *= codes.scale[:, None]
    k = min(_RECALL_AT, len(documents) - 1)
    scored = asked @ values.T, queries @ documents.T
    found, right = (np.argpartition(-scores, k - 1, axis=1)[:, :k] for scores in scored)
    return float(np.mean([len(np.intersect1d(*rows)) / k for rows in zip(found, right, strict=True)]))


def _split(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.random.default_rng(seed).permutation(count)
    cut = min(int(count * _HELD_OUT), _MOST_HELD_OUT)
    return order[:cut], order[cut:]


def _start(vectors: NDArray[np.float32], options: TrainingOptions) -> Binarizer:
    dims = options.dims or vectors.shape[1]
    method = options.start if dims <= vectors.shape[1] and len(vectors) >= dims else "rotation"
    return make_binarizer(method, vectors, dims, options.bits, options.seed)


def _pairs(
    unit: NDArray[np.float32],
    kept: NDArray[np.int64],
    pairs: NDArray[np.int64] | None,
    options: TrainingOptions,
) -> NDArray[np.int64]:
    """Pairs int64[p, 2] of which neither is held out: those given, else each vector with its nearest ones."""
    if pairs is not None:
        inside = np.isin(pairs, kept).all(axis=1)
        if not inside.any():
            raise EncoderError(
                f"{len(pairs)} pairs, none of them within {len(kept)} training vectors",
                "Pairs of row numbers",
                "Leave the pairs out: neighbours are mined then",
            )
        return pairs[inside]
    rows = unit[kept]
    near = []
    for at in range(0, len(rows), 1024):
        scores = rows[at : at + 1024] @ rows.T
        scores[np.arange(len(scores)), np.arange(at, at + len(scores))] = -np.inf
        near.append(np.argpartition(-scores, options.neighbours, axis=1)[:, : options.neighbours])
    nearest = np.concatenate(near)
    return np.stack([np.repeat(kept, options.neighbours), kept[nearest.ravel()]], axis=1)


def _epochs(
    start: Binarizer, unit: NDArray[np.float32], linked: NDArray[np.int64], options: TrainingOptions
) -> Iterator[tuple[int, Binarizer]]:
    """Train on pairs of these rows: the binarizer after each epoch, counted from 1."""
    generator = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    network = BinarizerNetwork(start, options.hidden, options.layers)
    rows = torch.from_numpy(unit)
    steps = max(1, len(linked) // options.batch)
    optimizer = _optimizer(network, options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * steps)
    for epoch in range(1, options.epochs + 1):
        network.train()
        for batch in np.array_split(generator.permutation(len(linked)), steps):
            loss = _loss(network, rows[linked[batch, 0]], rows[linked[batch, 1]], options)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), _MOST_GRADIENT)
            optimizer.step()
            schedule.step()
        network.eval()
        yield epoch, network.fold(start.spec)


def _optimizer(network: BinarizerNetwork, options: TrainingOptions) -> torch.optim.Optimizer:
    if options.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    weights = [each for each in network.parameters() if each.ndim > 1]
    others = [each for each in network.parameters() if each.ndim == 1]  # biases, and of batch normalisation
    groups = [{"params": weights, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=_MOMENTUM, nesterov=True)


def _loss(network: BinarizerNetwork, left: Tensor, right: Tensor, options: TrainingOptions) -> Tensor:
    loss = torch.zeros(())
    code = network(right)
    if options.distil:
        loss = loss + options.distil * _distil(network, left, right, code, options.list_temperature)
    if options.contrastive:
        other = network(left)
        cosines = torch.nn.functional.normalize(other, dim=1) @ torch.nn.functional.normalize(code, dim=1).T
        cosines = cosines / options.pair_temperature
        both = _hard_pairs(cosines, left, right) + _hard_pairs(cosines.T, right, left)
        loss = loss + options.contrastive * both
    return loss


def _distil(
    network: BinarizerNetwork, queries: Tensor, unit: Tensor, code: Tensor, temperature: float
) -> Tensor:
    """How far the codes' ranking of a batch is from the floats' (Kullback-Leibler), float queries on codes."""
    scores = (queries @ network.query.T) @ network.scaled(unit, code).T + (queries @ network.mean)[:, None]
    truth = queries @ unit.T
    itself = truth > 1 - 1e-4  # says nothing about the others, and would take the whole weight
    student = (scores / temperature).masked_fill(itself, -1e4).log_softmax(dim=1)
    teacher = (truth / temperature).masked_fill(itself, -1e4).log_softmax(dim=1)
    return torch.nn.functional.kl_div(student, teacher, log_target=True, reduction="batchmean")


def _hard_pairs(cosines: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Cross entropy of each row's positive, on the diagonal, against its highest negatives in the batch."""
    pair = (rows * columns).sum(dim=1, keepdim=True)
    same = (rows @ columns.T) >= pair  # nearer than the pair: no negative
    negatives = cosines.masked_fill(same, -1e9).topk(min(_HARD_NEGATIVES, len(cosines) - 1), dim=1).values
    logits = torch.cat([cosines.diagonal()[:, None], negatives], dim=1)
    return torch.nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
