"""A codes folder: binarizer.json says what it is, binarizer.safetensors holds the weights."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.codes.binarizer import Binarizer, BinarizerSpec, Block, Layer
from pipeline.errors import EncoderError

SPEC = "binarizer.json"
WEIGHTS = "binarizer.safetensors"
_FORMAT = 1


def save_codes(binarizer: Binarizer, folder: Path) -> None:
    """Write a binarizer to a folder, which is made; one that holds codes already is refused.

    Crash-safe: binarizer.json comes last, by a rename, and without it there are no codes. Raises EncoderError.
    """
    from safetensors.numpy import save_file

    if (folder / SPEC).exists():
        raise EncoderError(
            f"{folder} holds codes already",
            "A new folder",
            "Choose another --out: vectors may be coded with these",
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(array) for name, array in binarizer.tensors().items()}
    save_file(tensors, folder / WEIGHTS)
    os.chmod(folder / WEIGHTS, 0o644)  # safetensors writes for its owner alone; whoever searches reads it
    said = {"format": _FORMAT, "fingerprint": binarizer.fingerprint, "spec": binarizer.spec.as_dict()}
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{SPEC}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(said, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(name, 0o644)
    os.replace(name, folder / SPEC)


def load_codes(folder: Path, encoder_version: str = "") -> Binarizer:
    """Read a codes folder; raise EncoderError where it is damaged, or made for another encoder than this version."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        said = json.loads((folder / SPEC).read_text(encoding="utf-8"))
        binarizer = _assemble(BinarizerSpec(**said["spec"]), load_file(folder / WEIGHTS))
        whole = said["format"] == _FORMAT and said["fingerprint"] == binarizer.fingerprint
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise EncoderError(
            f"no codes can be read from {folder}: {type(error).__name__}: {error}",
            f"A folder with {SPEC} and {WEIGHTS}",
            "Give the folder that `headwater codes train --out` wrote",
        ) from error
    if not whole:
        raise EncoderError(
            f"the weights in {folder} are not those that {SPEC} describes",
            "Both files as they were written, by this version",
            "Train the codes again",
        )
    made_for = binarizer.spec.encoder_version
    if encoder_version and made_for and made_for != encoder_version:
        raise EncoderError(
            f"codes trained on vectors of encoder version {made_for}, for an encoder of version {encoder_version}",
            "The encoder that the codes were trained with",
            "Use that encoder, or train codes for this one",
        )
    return binarizer


def _assemble(spec: BinarizerSpec, tensors: dict[str, NDArray[np.float32]]) -> Binarizer:
    def block(name: str) -> Block:
        layers: list[Layer] = []
        while f"{name}.{len(layers)}.weight" in tensors:
            at = f"{name}.{len(layers)}"
            layers.append(Layer(tensors[f"{at}.weight"], tensors[f"{at}.bias"]))
        if not layers:
            raise KeyError(name)
        return tuple(layers)

    later = range(spec.bits - 1)
    return Binarizer(
        spec,
        block("first"),
        tuple(block(f"rebuild.{n}") for n in later),
        tuple(block(f"refine.{n}") for n in later),
        tensors["query"],
        tensors["mean"],
    )
