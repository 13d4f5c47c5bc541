"""Codes of a new encoder that rank beside an old one's: stored codes stay, new queries find both.

As in BEBR's compatible training (Gan et al., KDD 2023), new queries learn to find old codes; with the new codes in the
same denominator (`contra_ract`, Zhang et al., ICLR 2022) both kinds of documents rank on one scale. Beside that loss
stands the one that `training` found better: how far the ranking of an index that holds every text twice, coded by each,
is from the new encoder's own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.codes.binarizer import Binarizer, Block, on_grid, to_unit
from pipeline.codes.network import BinarizerNetwork
from pipeline.codes.packing import to_values, unpack
from pipeline.codes.training import LEAST_VECTORS, TrainingOptions, Watch
from pipeline.codes.untrained import check_sample
from pipeline.errors import EncoderError

_HELD_OUT, _MOST_HELD_OUT = 0.1, 1000
_RECALL_AT = 10
_MOST_GRADIENT = 5.0

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class CompatibleReport:
    """What a compatible training did.

    recall: held-out recall@10 against the new encoder's floats, of new float queries on an index half of whose codes
    are old, after each epoch on 90 % of the texts, first the start's; of coded queries where only the contrastive loss
    was trained on. best_epoch: how many epochs the codes had.
    """

    texts: int
    recall: tuple[float, ...]
    best_epoch: int
    seconds: float


def train_compatible(
    old: Vectors,
    new: Vectors,
    before: Binarizer,
    into_old: tuple[Vectors, Vectors],
    options: TrainingOptions,
    encoder_version: str = "",
    watch: Watch = lambda _epoch, _recall: None,
) -> tuple[Binarizer, CompatibleReport]:
    """Train φ_new on float32[n, d_old] and float32[n, d_new] of the same texts, `before` being φ_old, which stays.

    into_old: weight float32[d_new, d_old] and bias float32[d_old] of a map into the old space: φ_old behind it is what
    training starts from. `dims` and `bits` are φ_old's. The same vectors, options and seed give the same codes on one
    machine with one number of threads. Raises EncoderError for texts that do not pair, fewer than 256, NaN.
    """
    check_sample(new, LEAST_VECTORS)
    if len(old) != len(new):
        raise EncoderError(
            f"{len(old)} vectors of the old encoder, {len(new)} of the new one",
            "One of each for the same texts",
            "Embed the same texts with both",
        )
    since = time.perf_counter()
    unit = to_unit(new.astype(np.float64)).astype(np.float32)
    stored = _stored(before, old)
    start = _behind(before, *into_old, encoder_version)
    order = np.random.default_rng(options.seed).permutation(len(unit))
    cut = min(int(len(unit) * _HELD_OUT), _MOST_HELD_OUT)
    held, kept = order[:cut], order[cut:]
    coded = not options.distil  # then nothing teaches the projection of float queries
    recall = [_recall(start, unit, stored, held, kept, coded)]
    best = start
    for epoch, trained in _epochs(start, unit[kept], stored[kept], options):
        recall.append(_recall(trained, unit, stored, held, kept, coded))
        watch(epoch, recall[-1])
        if recall[-1] > max(recall[:-1]):
            best = trained
        if epoch - int(np.argmax(recall)) >= options.patience:
            break
    spec = replace(
        best.spec,
        method="compatible",
        encoder_version=encoder_version,
        compatible_with=before.fingerprint,
    )
    seconds = time.perf_counter() - since
    return replace(best, spec=spec), CompatibleReport(
        len(unit), tuple(recall), int(np.argmax(recall)), seconds
    )


def _stored(binarizer: Binarizer, vectors: Vectors) -> Vectors:
    """float32[n, dims]: what a float query is multiplied with, values times scale."""
    codes = binarizer.encode(vectors)
    values: Vectors = to_values(unpack(codes.packed, binarizer.spec.bits)).astype(np.float32)
    return values * codes.scale[:, None]


def _behind(before: Binarizer, weight: Vectors, bias: Vectors, encoder_version: str) -> Binarizer:
    """φ_old behind a linear map from the new space, as one binarizer; exact but for the lengths of what is mapped."""
    inputs = weight.shape[0]

    def into(block: Block, shift: Vectors, largest: float) -> Block:
        (layer,) = block
        return on_grid([(layer.weight @ weight.T, layer.bias + layer.weight @ shift)], largest)

    def out_of(block: Block) -> Block:
        (layer,) = block
        return on_grid([(weight @ layer.weight, weight @ (layer.bias - bias))], 2.0)

    spec = replace(before.spec, input_dims=inputs, method="bridged", encoder_version=encoder_version)
    if any(len(block) > 1 for block in (before.first, *before.rebuild, *before.refine)):
        raise EncoderError(
            "codes whose blocks have hidden layers", "Linear blocks", "Train the old codes with hidden = 0"
        )
    return Binarizer(
        spec,
        into(before.first, bias, 1.0),
        tuple(out_of(block) for block in before.rebuild),
        tuple(into(block, np.zeros_like(bias), 2.0) for block in before.refine),
        before.query @ weight.T,
        weight @ (before.mean - bias),
    )


def _recall(
    binarizer: Binarizer,
    unit: Vectors,
    stored: Vectors,
    held: NDArray[np.int64],
    kept: NDArray[np.int64],
    coded: bool,
) -> float:
    """Of the new floats' ten nearest, the share that held-out queries find where every other text's code is old."""
    index = _stored(binarizer, unit[kept])
    index[::2] = stored[kept][::2]
    asked = _stored(binarizer, unit[held]) if coded else binarizer.project(unit[held])
    pair = asked @ index.T, unit[held] @ unit[kept].T
    found, right = (np.argpartition(-scores, _RECALL_AT, axis=1)[:, :_RECALL_AT] for scores in pair)
    return float(
        np.mean([len(np.intersect1d(*rows)) / _RECALL_AT for rows in zip(found, right, strict=True)])
    )


def _epochs(
    start: Binarizer, unit: Vectors, stored: Vectors, options: TrainingOptions
) -> Iterator[tuple[int, Binarizer]]:
    """Train on texts' new vectors and old codes: the binarizer after each epoch, counted from 1."""
    generator = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    network = BinarizerNetwork(start, 0, 0)
    rows, codes = torch.tensor(unit), torch.tensor(stored)
    steps = max(1, len(unit) // options.batch)
    optimizer = torch.optim.Adam(network.parameters(), options.learning_rate)
    for epoch in range(1, options.epochs + 1):
        network.train()
        for batch in np.array_split(generator.permutation(len(unit)), steps):
            loss = _loss(network, rows[batch], codes[batch], options)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), _MOST_GRADIENT)
            optimizer.step()
        network.eval()
        yield epoch, network.fold(start.spec)


def _loss(network: BinarizerNetwork, unit: Tensor, stored: Tensor, options: TrainingOptions) -> Tensor:
    code = network(unit)
    loss = torch.zeros(())
    if options.distil:
        index = torch.cat([network.scaled(unit, code), stored])
        loss = loss + options.distil * _divergence(network, unit, index, options.list_temperature)
    if options.contrastive:
        loss = loss + options.contrastive * _contrast(code, stored, options.pair_temperature)
    return loss


def _divergence(network: BinarizerNetwork, unit: Tensor, index: Tensor, temperature: float) -> Tensor:
    """How far float queries' ranking of new and old codes is from one in which a text's two codes score alike."""
    itself = torch.eye(len(unit), dtype=torch.bool)
    truth = (unit @ unit.T / temperature).masked_fill(itself, -1e4).repeat(1, 2)
    scores = ((unit @ network.query.T) @ index.T / temperature).masked_fill(itself.repeat(1, 2), -1e4)
    return nn.functional.kl_div(
        scores.log_softmax(dim=1), truth.log_softmax(dim=1), log_target=True, reduction="batchmean"
    )


def _contrast(code: Tensor, stored: Tensor, temperature: float) -> Tensor:
    """`contra_ract`: a text's old code against the old and the new codes of all others."""
    asked, old = (nn.functional.normalize(rows, dim=1) for rows in (code, stored))
    others = (asked @ asked.T / temperature).masked_fill(torch.eye(len(code), dtype=torch.bool), -1e4)
    logits = torch.cat([asked @ old.T / temperature, others], dim=1)
    return nn.functional.cross_entropy(logits, torch.arange(len(code)))
