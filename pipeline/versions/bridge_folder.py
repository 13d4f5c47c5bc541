"""A bridge folder: bridge.json says what it joins and how well, bridge.safetensors holds the maps."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import EncoderError
from pipeline.versions.bridge import Bridge, BridgeSpec, Direction
from pipeline.versions.maps import Map, Vectors

SPEC = "bridge.json"
ARRAYS = "bridge.safetensors"
_FORMAT = 1
_DIRECTIONS: tuple[Direction, ...] = ("document", "query")


def save_bridge(bridge: Bridge, folder: Path) -> None:
    """Write a bridge to a folder, which is made; one that holds a bridge already is refused.

    Crash-safe: bridge.json comes last, by a rename, and without it there is no bridge. Raises EncoderError.
    """
    from safetensors.numpy import save_file

    if (folder / SPEC).exists():
        raise EncoderError(
            f"{folder} holds a bridge already",
            "A new folder",
            "Choose another --out: vectors may be mapped with this one",
        )
    folder.mkdir(parents=True, exist_ok=True)
    named = {
        f"{direction}.{method}.{name}": np.ascontiguousarray(array)
        for direction, fitted in bridge.maps.items()
        for method, each in fitted.items()
        for name, array in each.arrays().items()
    }
    save_file(named, folder / ARRAYS)
    os.chmod(folder / ARRAYS, 0o644)  # safetensors writes for its owner alone; whoever searches reads it
    said = {
        "format": _FORMAT,
        "fingerprint": bridge.fingerprint,
        "spec": asdict(bridge.spec),
        "figures": bridge.figures,
    }
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{SPEC}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(said, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(name, 0o644)
    os.replace(name, folder / SPEC)


def load_bridge(folder: Path, old_version: str = "", new_version: str = "") -> Bridge:
    """Read a bridge folder; raise EncoderError where it is damaged, or joins others than these encoder versions."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        said = json.loads((folder / SPEC).read_text(encoding="utf-8"))
        bridge = _assemble(said, load_file(folder / ARRAYS))
        whole = said["format"] == _FORMAT and said["fingerprint"] == bridge.fingerprint
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise EncoderError(
            f"no bridge can be read from {folder}: {type(error).__name__}: {error}",
            f"A folder with {SPEC} and {ARRAYS}",
            "Give the folder that `headwater versions bridge --out` wrote",
        ) from error
    if not whole:
        raise EncoderError(
            f"the maps in {folder} are not those that {SPEC} describes",
            "Both files as they were written, by this version",
            "Fit the bridge again",
        )
    _check_versions(bridge.spec, old_version, new_version, folder)
    return bridge


def _check_versions(spec: BridgeSpec, old_version: str, new_version: str, folder: Path) -> None:
    wanted = (
        ("old", spec.old_model, spec.old_version, old_version),
        ("new", spec.new_model, spec.new_version, new_version),
    )
    for which, model, fitted, asked in wanted:
        if asked and fitted != asked:
            raise EncoderError(
                f"the bridge {folder} was fitted for the {which} encoder {model!r}, version {fitted}; "
                f"the one at hand has version {asked}",
                "The two encoders that the bridge was fitted between, in their order",
                "Fit a bridge for these: headwater versions bridge OLD_ENCODER NEW_ENCODER …",
            )


def _assemble(said: dict[str, Any], arrays: dict[str, Vectors]) -> Bridge:
    maps: dict[Direction, dict[str, Map]] = {direction: {} for direction in _DIRECTIONS}
    for direction, fitted in maps.items():
        parts: dict[str, dict[str, Vectors]] = {}
        for key, array in arrays.items():
            where, method, name = key.split(".")
            if where == direction:
                parts.setdefault(method, {})[name] = array
        fitted.update({method: Map(**of) for method, of in parts.items()})
    return Bridge(BridgeSpec(**said["spec"]), maps, said["figures"])
