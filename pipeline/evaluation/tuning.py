"""Which prompt, and which layers, make the best encoder out of a language model: chosen on pairs, told by others.

Layers are few numbers and pairs are noisy, so what is chosen is scored on pairs that had no say in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DecoderConfig, EncoderConfig
from pipeline.encoders.decoders.prompts import PROMPTS as NAMED
from pipeline.encoders.decoders.prompts import SLOT, templates_of
from pipeline.encoders.long import PLAIN
from pipeline.errors import UsageError
from pipeline.evaluation.sts import Pairs, cosines_of, read_pairs, spearman, spearman_resampled
from pipeline.schemas import Observer, Progress

if TYPE_CHECKING:
    from pipeline.encoders.decoders.sweep import Checkpoint

PROMPTS = ("prompteol", "pretended-cot", "knowledge")
# Of the layers: where prepending may end, beside one layer on. Beyond the middle the paper found nothing for likeness.
_EXITS = (0.1, 0.2, 0.5)
_LEAST = 20

Embed = Callable[[DecoderConfig, Sequence[str]], NDArray[np.float32]]
"""Settings and n texts → float32[layers + 1, n, hidden]."""


@dataclass(frozen=True)
class Trial:
    """Settings of a language model and what they scored on the pairs that choose."""

    how: DecoderConfig
    spearman: float


def tune(
    config: EncoderConfig,
    file: Path,
    prompts: Sequence[str] = PROMPTS,
    most: int = 0,
    observe: Observer = lambda _: None,
) -> dict[str, Any]:
    """Choose prompt, token prepending, exit and out_layer on half of a file's pairs, as JSON values; writes nothing.

    `most`: of how many pairs, drawn at random, 0 for all. `chosen` are keys of [encoder.decoder]; `held_out` is its
    Spearman on the other half, `plain` that of the best without prepending, and `gain` the difference between the
    best with prepending and that, with its 95 % interval (bootstrap over pairs); None where no prompt has a slot.
    Raises UsageError for settings under which what is tried is another encoder than what `chosen` makes.
    """
    from pipeline.encoders.decoders.sweep import Checkpoint

    _check_settings(config)
    for prompt in prompts:
        templates_of(prompt, prepending=SLOT in prompt)  # raises before hours of tuning
    ours, theirs = halves(read_pairs(file), most, file)
    observe(Progress("loading the model"))
    model = Checkpoint.open(config)
    embed = _watched(model, observe)
    trials = [
        trial for prompt in prompts for trial in try_prompt(prompt, ours, embed, model.layers, config.decoder)
    ]
    return {
        "model": config.model,
        "pairs": {"chosen_on": len(ours.scores), "held_out": len(theirs.scores)},
        **_compared(trials, theirs, embed),
        "trials": [settings_of(trial) | {"spearman": round(trial.spearman, 5)} for trial in trials],
    }


def _compared(trials: Sequence[Trial], theirs: Pairs, embed: Embed) -> dict[str, Any]:
    """The best trial, and the best ones without prepending and with it on the pairs that had no say."""
    plain = best_of([trial for trial in trials if not trial.how.token_prepending])
    with_slot = [trial for trial in trials if trial.how.token_prepending]
    finalists = [plain, best_of(with_slot)] if with_slot else [plain]
    chosen = best_of(finalists)
    cosines = [cosines_of(embed(trial.how, theirs.texts)[trial.how.out_layer], theirs) for trial in finalists]
    scores = [round(spearman(values, theirs.scores), 5) for values in cosines]
    said = [settings_of(trial) | {"held_out": score} for trial, score in zip(finalists, scores, strict=True)]
    return {
        "chosen": settings_of(chosen),
        "spearman": round(chosen.spearman, 5),
        "held_out": scores[finalists.index(chosen)],
        "plain": said[0],
        "prepended": said[1] if with_slot else None,
        "gain": _gain(cosines[0], cosines[1], theirs.scores) if with_slot else None,
    }


def _check_settings(config: EncoderConfig) -> None:
    """Raise UsageError for settings that change vectors and that are not tried."""
    wrong = {
        "long": "" if config.long in PLAIN else config.long,
        "attention_scaling": config.attention_scaling,
        "dims": config.dims,
    }
    said = [f"encoder.{name} = {value!r}" for name, value in wrong.items() if value]
    if said:
        raise UsageError(
            f"{' and '.join(said)} while a language model is tuned",
            "Whole vectors of texts within the model's window: nothing else is tried",
            "Leave it out here, and export what is chosen with it: headwater encoders export",
        )


def _gain(
    plain: NDArray[np.floating], prepended: NDArray[np.floating], scores: NDArray[np.floating]
) -> list[float]:
    """The difference in Spearman between two encoders' cosines float[pairs], and its 95 % interval."""
    drawn = [spearman_resampled(values, scores) for values in (plain, prepended)]
    low, high = np.quantile(drawn[1] - drawn[0], (0.025, 0.975))
    difference = spearman(prepended, scores) - spearman(plain, scores)
    return [round(float(value), 5) for value in (difference, low, high)]


def try_prompt(prompt: str, pairs: Pairs, embed: Embed, layers: int, asked: DecoderConfig) -> list[Trial]:
    """A prompt without prepending and, if it has a slot for that, with each exit, each at its best upper layer.

    Pooling, mask and start are those that are `asked` for.
    """
    plain = DecoderConfig(prompt=prompt, pooling=asked.pooling, attention=asked.attention)
    prepended = {"token_prepending": True, "start": asked.start}
    exits = exits_of(layers, asked.start) if prompt in NAMED or SLOT in prompt else []
    hows = [plain, *(plain.model_copy(update={**prepended, "exit": exit}) for exit in exits)]
    return [best_layer(how, pairs, embed(how, pairs.texts), layers) for how in hows]


def exits_of(layers: int, start: int) -> list[int]:
    """The exits that are tried in a model of so many layers: all behind the layer where prepending starts."""
    first = max(2, start + 1)
    return sorted({first, *(max(first, round(share * layers)) for share in _EXITS)})


def best_layer(how: DecoderConfig, pairs: Pairs, vectors: NDArray[np.float32], layers: int) -> Trial:
    """The layer of the upper half whose vectors float32[layers + 1, n, hidden] score best."""
    first = max(layers // 2, how.exit, 1)
    scores = {
        out: spearman(cosines_of(vectors[out], pairs), pairs.scores) for out in range(first, layers + 1)
    }
    out = max(scores, key=lambda layer: (scores[layer], layer))
    return Trial(how.model_copy(update={"out_layer": out}), scores[out])


def best_of(trials: Sequence[Trial]) -> Trial:
    """The one that scored best, the first among equals."""
    return max(trials, key=lambda trial: trial.spearman)


def settings_of(trial: Trial) -> dict[str, Any]:
    """The keys of [encoder.decoder] in which a trial differs from the defaults."""
    return trial.how.model_dump(exclude_defaults=True)


def halves(pairs: Pairs, most: int, file: Path) -> tuple[Pairs, Pairs]:
    """Two halves of the pairs, drawn at random with a fixed seed, of at most `most` pairs together (0: all)."""
    order = np.random.default_rng(0).permutation(len(pairs.scores))[: most or None]
    if len(order) < _LEAST:
        raise UsageError(
            f"{len(order)} pairs of {file}",
            f"At least {_LEAST}: half of them choose, the other half are scored",
            "Give more pairs, or a higher --most",
        )
    parts = some_of(pairs, order[::2]), some_of(pairs, order[1::2])
    for part in parts:
        if part.scores.min() == part.scores.max():
            raise UsageError(
                f"{len(part.scores)} pairs of {file}, half of those drawn, all with the score {part.scores[0]:g}",
                "Pairs of different likeness in both halves",
                "Give more pairs, or a higher --most",
            )
    return parts


def some_of(pairs: Pairs, rows: NDArray[np.int64]) -> Pairs:
    """These rows of the pairs, with the texts that they need."""
    used, numbers = np.unique(np.concatenate([pairs.first[rows], pairs.second[rows]]), return_inverse=True)
    first, second = numbers[: len(rows)], numbers[len(rows) :]
    texts = [pairs.texts[number] for number in used]
    return replace(pairs, texts=texts, first=first, second=second, scores=pairs.scores[rows])


def _watched(model: Checkpoint, observe: Observer) -> Embed:
    def embed(how: DecoderConfig, texts: Sequence[str]) -> NDArray[np.float32]:
        what = f"{how.prompt}{f', prepending to {how.exit}' if how.token_prepending else ''}"
        return model.vectors(how, texts, lambda done: observe(Progress(what, done, len(texts))))

    return embed
