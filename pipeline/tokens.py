"""A tokenizer that counts once: what chunking and encoders both need of a tokenizer file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tokens:
    """A text's tokens without special tokens; three arrays of the same length.

    `ids` int32; `starts`, `ends` int64 code points into the text, as slices: `text[start:end]`.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


class Tokenizer(Protocol):
    """What chunking and encoders ask of a tokenizer."""

    special_tokens: int
    """How many tokens `model_input` adds around a text, the document prompt included."""

    cuts_cleanly: bool
    """True where a text cut at white space has exactly the tokens of its pieces."""

    def tokenize(self, text: str) -> Tokens: ...

    def model_input(self, ids: NDArray[np.int32]) -> NDArray[np.int32]: ...

    def encode(self, text: str) -> NDArray[np.int32]: ...


def load_tokenizer(file: Path, prompt: str = "") -> Tokenizer:
    """Load a tokenizer.json, truncation and padding reset; `prompt` goes before every text."""
    raise NotImplementedError
