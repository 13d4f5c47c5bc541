"""What a stored chunk becomes in another version: embedded anew from its text, or its vector mapped, or as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.codes import Binarizer, to_rows
from pipeline.encoders import Encoder
from pipeline.errors import InputsTooLarge
from pipeline.stores import Chunk, Profile
from pipeline.versions import Bridge

BRIDGE = "bridge"
"""The key, among our own, under which a mapped point names the bridge, or compatible codes, by the fingerprint."""

Refusal = tuple[str, str]
"""A reason in a word, and in a sentence."""


class Maker(Protocol):
    """Makes vectors from stored chunks: `make`, of what `read` has taken from each."""

    @property
    def maps(self) -> bool:
        """Whether it maps stored vectors, which then must be read with the chunks."""

    @property
    def window_tokens(self) -> int:
        """How many tokens are gathered for one `make`."""

    def read(self, chunk: Chunk) -> NDArray[Any]:
        """What a chunk's vector is made from: token ids int32[n], or the vector float32[dims] that it has."""

    def tokens(self, given: NDArray[Any]) -> int:
        """How many tokens are to be embedded for it."""

    def refuses(self, given: NDArray[Any]) -> Refusal | None:
        """Why no vector can be made from it; None where one can."""

    def make(self, given: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """float32[n, width]: the vectors of a point side by side, as the target has them; NaN where none was made."""

    def stamp(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Our own fields of a stored chunk as the target's point has them."""

    def close(self) -> None:
        """Free the encoder."""


class Embedder:
    """Embeds texts by an encoder that is loaded when there is a first text: often nothing has changed."""

    maps = False

    def __init__(
        self, version: str, load: Callable[[], Encoder], profile: Profile, window_tokens: int
    ) -> None:
        self._version = version
        self._load = load
        self._profile = profile
        self._window_tokens = window_tokens

    @cached_property
    def _encoder(self) -> Encoder:
        return self._load()

    @property
    def window_tokens(self) -> int:
        """See `Maker`; 0 in the settings: sixteen batches."""
        return self._window_tokens or 16 * self._encoder.batch_tokens

    def read(self, chunk: Chunk) -> NDArray[Any]:
        """See `Maker`."""
        text, _ = self._profile.read(chunk.payload)
        return self._encoder.tokenizer.encode(text)

    def tokens(self, given: NDArray[Any]) -> int:
        """See `Maker`."""
        return len(given)

    def refuses(self, given: NDArray[Any]) -> Refusal | None:
        """See `Maker`: a chunk is too long, or made into a vector within its whole document alone."""
        spec = self._encoder.spec
        if spec.row == "document":
            method = spec.settings["long"]
            return (
                "late_chunking",
                f"encoder.long = {method!r} embeds a chunk within its whole document alone",
            )
        if len(given) > spec.max_tokens:
            return "too_long", f"a chunk of {len(given)} tokens, and this encoder takes {spec.max_tokens}"
        return None

    def make(self, given: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """See `Maker`."""
        try:
            return self._encoder.encode(given)
        except InputsTooLarge as error:
            vectors: NDArray[np.float32] = error.vectors
            return vectors

    def stamp(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        """See `Maker`: the encoder's version, and no bridge."""
        kept = {name: value for name, value in ours.items() if name != BRIDGE}
        return kept | {"encoder_version": self._version}

    def close(self) -> None:
        """See `Maker`."""
        if "_encoder" in vars(self):
            self._encoder.close()


Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Stored rows float32[n, width] → those of another version, float32[n, new width]."""


@dataclass(frozen=True)
class Carrier:
    """Takes the stored vectors called `vector_name` over by a change; `fingerprint` is that of what allows it.

    That is a bridge, or codes that were trained to rank beside the stored ones (`codes/compatible.py`).
    """

    vector_name: str
    fingerprint: str
    change: Change

    maps = True
    window_tokens = 1  # never reached

    def read(self, chunk: Chunk) -> NDArray[Any]:
        """See `Maker`."""
        return np.array(chunk.vectors[self.vector_name], np.float32)

    def tokens(self, given: NDArray[Any]) -> int:
        """See `Maker`: none."""
        return 0

    def refuses(self, given: NDArray[Any]) -> Refusal | None:
        """See `Maker`: none."""
        return None

    def make(self, given: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """See `Maker`."""
        return self.change(np.stack(given))

    def stamp(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        """See `Maker`: the version of the encoder that embedded the text stays, and what allows it is named."""
        return {**ours, BRIDGE: self.fingerprint}

    def close(self) -> None:
        """See `Maker`."""


def as_they_are(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The change of codes that newer ones rank beside: not a bit."""
    return rows


def mapped(bridge: Bridge, binarizer: Binarizer | None = None, keep: bool = True) -> Change:
    """The change of vectors by a bridge; `binarizer`: into codes, and with `keep` the vectors behind them."""

    def change(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = bridge.documents(rows).astype(np.float32, copy=False)
        if binarizer is None:
            return vectors
        codes = to_rows(binarizer.encode(vectors), binarizer.spec.bits)
        return np.concatenate([codes, vectors], axis=1) if keep else codes

    return change
