"""A bridge between two encoders' spaces: stored vectors of the old one become comparable with the new one's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from pipeline.errors import EncoderError
from pipeline.versions.maps import Map, Vectors, to_unit

Direction = Literal["document", "query"]

_OLD_WEIGHT = 0.5  # of the old encoder's query beside the new one's


@dataclass(frozen=True)
class BridgeSpec:
    """What a bridge joins: encoder versions, where they came from, widths of their vectors, and the methods chosen.

    document: the method that maps old vectors into the new space, for queries of the new encoder; query: the one that
    maps queries of the new encoder into the old space.
    """

    old_version: str
    new_version: str
    old_model: str
    new_model: str
    old_dims: int
    new_dims: int
    document: str
    query: str


@dataclass(frozen=True, eq=False)
class Bridge:
    """The maps that were fitted, by direction and method, and which of them are in force.

    figures: what was measured with held-out texts, by direction and method; JSON values.
    """

    spec: BridgeSpec
    maps: Mapping[Direction, Mapping[str, Map]]
    figures: Mapping[str, object]

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits: SHA-256 of the spec and of the maps in force."""
        digest = hashlib.sha256(json.dumps(asdict(self.spec), sort_keys=True).encode())
        for chosen in (self.maps["document"][self.spec.document], self.maps["query"][self.spec.query]):
            for name, array in sorted(chosen.arrays().items()):
                digest.update(f"{name}{array.shape}".encode() + np.ascontiguousarray(array, "<f4").tobytes())
        return digest.hexdigest()

    def documents(self, vectors: Vectors) -> Vectors:
        """Map old vectors float32[n, old_dims] to unit vectors float32[n, new_dims] that new queries find.

        Row i depends on row i alone. Raises EncoderError for another width, NaN or infinite values.
        """
        check_vectors(vectors, self.spec.old_dims, "the old encoder")
        return self.maps["document"][self.spec.document](vectors)

    def queries(self, vectors: Vectors) -> Vectors:
        """Map queries of the new encoder float32[n, new_dims] to unit vectors float32[n, old_dims]; raises as above."""
        check_vectors(vectors, self.spec.new_dims, "the new encoder")
        return self.maps["query"][self.spec.query](vectors)

    def both(self, new: Vectors, old: Vectors) -> Vectors:
        """Queries for mapped and native documents at once, where the old encoder still answers, too.

        float32[n, new_dims] of queries by the new encoder and float32[n, old_dims] by the old one: unit vectors
        float32[n, new_dims]. A rotation keeps the old encoder's angles, so mapped documents are also ranked as it
        ranked them: what a bridge gets wrong in the new space is held by the old one. Raises as above.
        """
        check_vectors(new, self.spec.new_dims, "the new encoder")
        check_vectors(old, self.spec.old_dims, "the old encoder")
        turned = to_unit(old @ self.maps["document"]["procrustes"].weight)
        return to_unit(to_unit(new) + np.float32(_OLD_WEIGHT) * turned)


def check_vectors(vectors: Vectors, dims: int, whose: str) -> None:
    """Raise EncoderError unless vectors are finite and `dims` wide."""
    if vectors.ndim != 2 or vectors.shape[1] != dims:
        raise EncoderError(
            f"vectors of shape {vectors.shape} for a bridge",
            f"[n, {dims}], as {whose} makes them",
            "Use the encoders that the bridge was fitted between",
        )
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors).all(axis=1)).sum())
        raise EncoderError(
            f"{bad} of {len(vectors)} vectors with NaN or infinite values", "Finite numbers", "Leave them out"
        )
