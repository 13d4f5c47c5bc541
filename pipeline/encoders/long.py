"""Texts longer than a model's window: which methods a model allows, and where each of them puts a token.

Sources: LongEmbed (arXiv 2404.12096) for pcw, gp, rp, pi and the scaled attention, SelfExtend (arXiv 2401.01325). What
differs from LongEmbed's code: each row goes by its own number of tokens, so that a vector does not depend on its batch;
windows are of equal size and do not overlap; `pi-dynamic` is ours, an interpolation by the text's own length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import EncoderConfig
from pipeline.encoders.folder import Dense, ModelFolder
from pipeline.encoders.positions import Positions, read_positions
from pipeline.errors import UsageError

PLAIN = ("split", "error", "truncate")
"""The model takes what it always took: documents are cut to fit, refused, or lose their end."""

LEARNED = ("gp", "rp", "pi", "pi-dynamic")
"""Other positions for the tokens of long texts, in the graph of a model with a table of positions."""

NTK, SELF_EXTEND = ROTARY = ("ntk", "self-extend")
"""In the graph of a model with rotary positions: slower angles, which change short texts too, and grouped distances."""

WINDOWS = ("pcw",)
"""The model takes a text in several windows."""

LATE = "late-chunking"
"""The model takes whole documents, and a chunk's vector is the mean of its tokens' states among the others.

Documents beyond the window are taken in passes, or, as "late-chunking:pi" says and the like, by a method in the graph:
then those beyond max_tokens are taken in passes of that size.
"""

# The gate runs rows about the window: attention scores of one head at 8,193 tokens are 268 MB.
_CHECKED = 8192
# A table of 512 positions reaches 8,192 tokens this way, angles eight windows: further was never measured.
_MOST = dict.fromkeys(LEARNED, 16) | dict.fromkeys(ROTARY, 8)


@dataclass(frozen=True)
class LongSpec:
    """How texts are embedded that are longer than the model's window; "split" is the absence of this.

    method: as `encoder.long` names it.
    window: tokens that the model takes by itself, special tokens included.
    factor: how many windows long the longest row of the graph is, rounded up.
    attention_scaling: whether attention is made sharper by log(tokens) / log(window) where there are more.
    """

    method: str
    window: int
    factor: int = 1
    attention_scaling: bool = False

    @property
    def late(self) -> bool:
        """Whether the vectors of chunks are made of the token states of their document."""
        return self.method.partition(":")[0] == LATE

    @property
    def extension(self) -> str:
        """By which of LEARNED and ROTARY the graph reaches beyond the window; "" where it is the model's own."""
        return extension_of(self.method)

    @property
    def by_length(self) -> bool:
        """Whether the graph does something else with texts that are longer than the window."""
        return self.extension in (*LEARNED, SELF_EXTEND) or self.attention_scaling

    @property
    def groups(self) -> tuple[int, int]:
        """SelfExtend's group size, and how near tokens keep their distance: LongEmbed's, which just reach all texts."""
        return self.factor + 1, self.window // self.factor


def extension_of(method: str) -> str:
    """The method in the graph out of a value of `encoder.long`; "" for none."""
    name = method.removeprefix(f"{LATE}:")
    return name if name in LEARNED + ROTARY else ""


def methods_of(folder: ModelFolder, positions: Positions) -> tuple[str, ...]:
    """The values of `encoder.long` that a model allows."""
    kinds = {"learned": LEARNED, "rotary": ROTARY} if folder.format != "onnx" else {}
    beyond = kinds.get(positions.kind, ())
    late = (LATE, *(f"{LATE}:{name}" for name in beyond)) if pools_late(folder) else ()
    return (*PLAIN, *WINDOWS, *beyond, *late)


def pools_late(folder: ModelFolder) -> bool:
    """Whether a model's vector is the mean of its token states, as far as late chunking is concerned."""
    head = folder.head
    more = head.trained is not None or any(isinstance(layer, Dense) for layer in head.layers)
    return head.pooling == ("mean",) and not more


def describe_long(folder: ModelFolder, config: EncoderConfig, usual: int) -> tuple[LongSpec | None, int]:
    """What the settings ask for, and the longest input; `usual` is what the model takes if nobody asks for more.

    Raises UsageError for a method that the model does not allow, and for lengths that are no extension or too long.
    """
    method, extension, positions = config.long, extension_of(config.long), read_positions(folder)
    allowed = methods_of(folder, positions)
    if method not in allowed:
        raise UsageError(
            f"encoder.long = {method!r}, and the model ({folder.config['model_type']}, {_said(folder, positions)}) "
            "does not allow it",
            f"One of {', '.join(allowed)}",
            "Choose one of them, or another model",
        )
    _check_scaling(config)
    if method in (*PLAIN, LATE):
        return (None if method == "split" else LongSpec(method, usual)), usual
    window = positions.window or usual
    if extension == SELF_EXTEND and positions.sliding:
        window = min(window, positions.sliding)  # which is switched off, and changes no shorter text
    long = LongSpec(method, window, math.ceil(config.max_tokens / window), config.attention_scaling)
    _check_reach(long, config.max_tokens)
    return long, config.max_tokens


def _check_reach(long: LongSpec, most: int) -> None:
    """Raise UsageError where texts of `most` tokens are no extension of the window, or more than a method takes."""
    asked = f"encoder.long = {long.method!r} with encoder.max_tokens = {most}"
    if most <= long.window:
        raise UsageError(
            f"{asked}, and the model has positions for {long.window} tokens",
            f"encoder.max_tokens above {long.window}: the longest text that the model is to take at once",
            f"Set encoder.max_tokens, for example to {4 * long.window}",
        )
    times = _MOST.get(long.extension, long.factor)
    if long.factor > times:
        raise UsageError(
            f"{asked}, and the model has positions for {long.window} tokens",
            f"At most {times} times as many, {times * long.window}",
            f"Lower encoder.max_tokens, or take encoder.long = {'pcw' if long.method == long.extension else LATE}",
        )
    if long.by_length and long.window > _CHECKED:
        raise UsageError(
            f"{asked}, and the model has positions for {long.window} tokens",
            f"A window of at most {_CHECKED}: the gate runs longer rows, and these take more memory than there is",
            "Take encoder.long = pcw, or ntk without encoder.attention_scaling for rotary positions",
        )


def _check_scaling(config: EncoderConfig) -> None:
    if config.attention_scaling and not extension_of(config.long):
        raise UsageError(
            f"encoder.attention_scaling with encoder.long = {config.long!r}",
            f"A method that changes the graph: {', '.join(LEARNED + ROTARY)}",
            "Leave encoder.attention_scaling out",
        )


def _said(folder: ModelFolder, positions: Positions) -> str:
    if folder.format == "onnx":
        return "an ONNX graph without other weights"
    kind = {"unknown": "positions of a kind not known here"}.get(
        positions.kind, f"{positions.kind} positions"
    )
    return kind + (", local attention" if positions.local else "")


def position_rows(long: LongSpec, table: NDArray[np.floating], tokens: int) -> NDArray[np.float64]:
    """What a text of so many tokens has for positions, float64[tokens, hidden].

    `table` float[window, hidden] is the model's own. This is the definition; graphs are held to it.
    """
    window, places = len(table), np.arange(tokens)
    if tokens <= window:
        return table[:tokens].astype(np.float64)
    if long.extension == "gp":
        return table[places // math.ceil(tokens / window)].astype(np.float64)
    if long.extension == "rp":
        return table[places % window].astype(np.float64)
    reach = (tokens - 1) / (window - 1) if long.extension == "pi-dynamic" else long.factor
    columns = [np.interp(places / reach, np.arange(window), column) for column in table.T.astype(np.float64)]
    return np.stack(columns, axis=1)


def stretched(table: NDArray[np.floating], factor: int) -> NDArray[np.floating]:
    """The table with `factor` times as many rows: its own, and what lies between them on a line.

    Rows behind the last of its own repeat that one (LongEmbed leaves them open).
    """
    window = len(table)
    below = np.arange(window * factor) // factor
    share = (np.arange(window * factor) % factor / factor)[:, None]
    above = np.minimum(below + 1, window - 1)
    rows = table[below].astype(np.float64) * (1 - share) + table[above].astype(np.float64) * share
    return rows.astype(table.dtype)


def relative_places(tokens: int, group: int, near: int) -> NDArray[np.int64]:
    """How far each key (column) is to the right of each query (row) in SelfExtend, int64[tokens, tokens].

    Fewer than `near` tokens apart they are as far as ever, beyond that by the number of groups between them.
    """
    places = np.arange(tokens)
    apart = places[None] - places[:, None]
    far = places[None] // group - places[:, None] // group + np.sign(apart) * (near - near // group)
    return np.where(np.abs(apart) < near, apart, far)


def sharpness(long: LongSpec, tokens: int) -> float:
    """What attention's logits are multiplied by in a text of so many tokens."""
    return max(1.0, math.log(tokens) / math.log(long.window)) if long.attention_scaling else 1.0
