"""A better space without training: an affine map behind a model's vectors, fitted on a sample of them.

centre              the sample's mean is taken off
all-but-the-top[:D] and the D principal directions of what remains, D = dims / 100 (Mu & Viswanath 2018, arXiv
                    1702.01417, algorithm 1)
whiten[:K]          every principal direction gets the same variance, the first K are kept, else all that vary (Su et
                    al. 2021, arXiv 2103.15316, algorithm 1)

It maps vectors as they are before they get the length 1, as both papers do, and what comes out gets the length 1.
Mapped behind the normalisation, MiniLM lost .001 to .007 more on sentence pairs. And a mean of raw vectors may be
mapped before or after it was taken: windows, prompts and chunks whose vectors are means keep the same meaning.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EncoderError, UsageError

SPACE = "space.safetensors"

CENTRE, TOP, WHITEN = KINDS = ("centre", "all-but-the-top", "whiten")

# A direction whose variance is less than this of the first one's says nothing but rounding: mean-pooled states behind a
# LayerNorm have such directions (MiniLM: 3 of 384), and dividing by it would let rounding decide.
_LEAST_VARIANCE = 1e-7
_LEAST_TEXTS = 100  # of a mean
_PREFIX = "space:"


@dataclass(frozen=True, eq=False)
class Space:
    """A fitted map: x → (x − mean) · matrix; mean float32[in], matrix float32[in, out], None where it changes nothing.

    kind: what was fitted, "whiten:256"; texts: on how many vectors.
    """

    kind: str
    mean: NDArray[np.float32]
    matrix: NDArray[np.float32] | None
    texts: int

    @property
    def dims(self) -> int:
        """Length of a mapped vector."""
        return len(self.mean) if self.matrix is None else self.matrix.shape[1]

    @property
    def module(self) -> str:
        """How an encoder's spec names it, by its numbers: another map is another version."""
        digest = hashlib.sha256(self.kind.encode("ascii"))
        for values in (self.mean, self.matrix):
            if values is not None:
                digest.update(np.ascontiguousarray(values, "<f4").tobytes())
        return f"{_PREFIX}{self.kind}:{digest.hexdigest()}"

    def apply(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Raw vectors float[n, in] in this space, of length 1: float64[n, out]."""
        moved = vectors.astype(np.float64) - self.mean
        mapped = moved if self.matrix is None else moved @ self.matrix.astype(np.float64)
        unit: NDArray[np.float64] = mapped / np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), 1e-12)
        return unit


def read_kind(text: str) -> tuple[str, int]:
    """The kind and its number, 0 for its own default, out of "centre", "whiten:256" or "all-but-the-top:3"."""
    kind, colon, number = text.partition(":")
    if kind not in KINDS or (colon and (kind == CENTRE or not re.fullmatch("[1-9][0-9]*", number))):
        raise UsageError(
            f"--space {text!r}",
            f"{CENTRE}, {TOP} or {TOP}:DIRECTIONS, {WHITEN} or {WHITEN}:DIMS",
            f"For example --space {TOP}:3",
        )
    return kind, int(number or 0)


def check_sample(text: str, dims: int, count: int) -> None:
    """Raise UsageError where `count` texts are too few to fit this kind on vectors of so many dimensions."""
    kind, number = read_kind(text)
    if number and number >= dims:
        raise UsageError(
            f"--space {text}, and the model's vectors have {dims} dimensions",
            f"Less than {dims}",
            f"--space {kind}",
        )
    least = {CENTRE: _LEAST_TEXTS, TOP: max(_LEAST_TEXTS, dims), WHITEN: max(_LEAST_TEXTS, 2 * dims)}[kind]
    if count < least:
        raise UsageError(
            f"a sample of {count} texts for --space {text}, and vectors of {dims} dimensions",
            f"At least {least}, all different",
            "Give a larger --sample" + ("" if kind == CENTRE else f", or fit less of it: --space {CENTRE}"),
        )


def fit(text: str, vectors: NDArray[np.floating]) -> Space:
    """Fit a kind of space on raw vectors float[n, dims]; raises EncoderError for NaN and for too little variance."""
    kind, number = read_kind(text)
    check_sample(text, vectors.shape[1], len(vectors))
    sample = vectors.astype(np.float64)
    if not np.isfinite(sample).all():
        raise EncoderError("NaN or infinite vectors in the sample", "Finite vectors", "Check the encoder")
    mean = sample.mean(axis=0)
    if kind == CENTRE:
        return Space(kind, mean.astype(np.float32), None, len(vectors))
    variances, directions = _principal(sample - mean)
    usual = _usual_number(kind, variances)
    matrix = _matrix(kind, number or usual, usual, variances, directions)
    named = kind if number in (0, usual) else text  # one name for one map, however it was asked for
    return Space(named, mean.astype(np.float32), matrix, len(vectors))


def _principal(centred: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variances float64[dims], the largest first, and their directions as columns float64[dims, dims]."""
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    return variances[::-1], directions[:, ::-1]


def _usual_number(kind: str, variances: NDArray[np.float64]) -> int:
    """The number that a kind has where none is asked for: directions taken off, or those that vary and are kept."""
    if kind == TOP:
        return max(1, len(variances) // 100)
    return int((variances > _LEAST_VARIANCE * variances[0]).sum())


def _matrix(
    kind: str,
    number: int,
    usual: int,
    variances: NDArray[np.float64],
    directions: NDArray[np.float64],
) -> NDArray[np.float32]:
    dims = len(variances)
    if kind == TOP:
        top = directions[:, :number]
        return (np.eye(dims) - top @ top.T).astype(np.float32)
    if usual < max(number, 1):
        raise EncoderError(
            f"vectors of the sample vary in {usual} of {dims} directions",
            f"As many as are to be kept, {number or dims}",
            "Give a sample of more various texts, or keep fewer: --space whiten:DIMS",
        )
    return (directions[:, :number] / np.sqrt(variances[:number])).astype(np.float32)


def save_space(space: Space, file: Path) -> None:
    """Write a space; whoever writes it makes it appear whole."""
    from safetensors.numpy import save_file

    tensors = {"mean": space.mean} | ({} if space.matrix is None else {"matrix": space.matrix})
    said = json.dumps({"kind": space.kind, "texts": space.texts})
    save_file({name: np.ascontiguousarray(of) for name, of in tensors.items()}, file, {"space": said})


def load_space(folder: Path, modules: tuple[str, ...]) -> Space | None:
    """The space of an exported encoder, None where its modules name none. Raises EncoderError where it is another."""
    if not has_space(modules):
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / SPACE, "numpy") as file:
            said = json.loads(file.metadata()["space"])
            matrix = file.get_tensor("matrix") if "matrix" in file.keys() else None  # noqa: SIM118 - no mapping
            space = Space(said["kind"], file.get_tensor("mean"), matrix, int(said["texts"]))
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise _damaged(folder, repr(error)) from None
    if space.module not in modules:
        raise _damaged(folder, f"it holds {space.module}")
    return space


def has_space(modules: tuple[str, ...]) -> bool:
    """Whether an encoder's modules end in a fitted space."""
    return any(module.startswith(_PREFIX) for module in modules)


def _damaged(folder: Path, why: str) -> EncoderError:
    return EncoderError(
        f"the space of the exported encoder {folder} cannot be used: {why}",
        f"{SPACE} as it was exported",
        "Copy the folder again, or export the encoder again: headwater encoders export",
    )
