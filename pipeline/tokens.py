"""A tokenizer that counts once: what chunking and encoders both need of a tokenizer file.

The one home of the `tokenizers` library. Texts go through its `encode_batch`, which lets other Python threads
run meanwhile; `encode` was measured to hold the interpreter for the whole text. How many threads the library
takes itself is the caller's choice (TOKENIZERS_PARALLELISM, RAYON_NUM_THREADS).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from pipeline.errors import EncoderError

TEXT = "{text}"
"""Where the text goes in a prompt; in one without it, behind it."""

# White space at which every tokenizer of the sure families (`_cuts_cleanly`) ends a word. Not all that
# `str.isspace` calls so: BERT drops \v, \f and \x1c to \x1f as control characters and joins their neighbours.
SPACES = " \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
SPACE = re.compile(f"[{SPACES}]")

# What BertPreTokenizer makes a token of its own, so that a text may be taken apart behind it. Only used where
# a long stretch has no white space (Chinese, minified JSON, base64). None composes with a following mark.
_PUNCTUATION = ',;.!?:"/+)}]。！？、，'

# The library slows down by a third on long texts (its buffers leave the cache), and keeps some 100 bytes a
# token: texts go in as segments of this many characters, so many at a time.
_SEGMENT_CHARS = 16 << 10
_SEGMENTS_AT_ONCE = 64


@dataclass(frozen=True)
class Tokens:
    """A text's tokens without special tokens; three arrays of the same length.

    `ids` int32; `starts`, `ends` int64 code points into the text, as slices: `text[start:end]`. The white
    space that some tokenizers count as part of a word is left out of its slice.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


class Tokenizer:
    """A tokenizer.json and a prompt: texts to tokens, tokens to what the encoder takes. Thread-safe.

    The prompt goes before every text, or around it, where TEXT stands in it.

    special_tokens: how many tokens `model_input` adds around a text, the prompt included.
    around: how many of them go before the text, and after it.
    cuts_cleanly: True only where a text cut at white space surely has exactly the tokens of its pieces
        (and prompt + text those of both).
    version: 64 hex digits, the SHA-256 of the file and the prompt.
    """

    def __init__(self, definition: bytes, prompt: str = "") -> None:
        text = definition.decode("utf-8")
        self._tokenizer = tokenizers.Tokenizer.from_str(text)
        self._tokenizer.no_truncation()  # MiniLM's file would cut at 128 tokens, silently,
        self._tokenizer.no_padding()  # and pad to 128
        self._left, _, self._right = prompt.partition(TEXT)
        spec = json.loads(text)
        at_edges = (self._left[-1:], self._right[:1])
        self.cuts_cleanly = _cuts_cleanly(spec) and all(not edge or SPACE.match(edge) for edge in at_edges)
        self._seam = _seam(spec)
        self._before, self._after = self._specials()
        self.around = len(self._before), len(self._after)
        self.special_tokens = sum(self.around)
        self.version = hashlib.sha256(json.dumps([prompt]).encode() + definition).hexdigest()

    def tokenize(self, text: str) -> Tokens:
        """The tokens of a text, without prompt and special tokens; memory beyond the result is bounded.

        Equal to tokenizing in one go where `cuts_cleanly`; else a token may differ every 16 KiB.
        """
        return next(self.tokenize_batch([text]))

    def tokenize_batch(self, texts: Iterable[str]) -> Iterator[Tokens]:
        """Yield each text's tokens in order; short texts share one call of the library."""
        segments = (
            (text[start:end], start, end == len(text))
            for text in texts
            for start, end in _segments(text, self._seam)
        )
        parts: list[Tokens] = []
        while group := list(islice(segments, _SEGMENTS_AT_ONCE)):
            encodings = self._tokenizer.encode_batch([text for text, _, _ in group], add_special_tokens=False)
            for (text, start, last), encoding in zip(group, encodings, strict=True):
                tokens = _unpack(encoding)
                tokens = tokens if self.cuts_cleanly else _trim(text, tokens)
                parts.append(Tokens(tokens.ids, tokens.starts + start, tokens.ends + start))
                if last:
                    yield _join(parts)
                    parts = []

    def model_input(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """int32[n] of a text to int32[n + special_tokens] as the encoder takes them, prompt included."""
        return np.concatenate((self._before, ids, self._after))

    def encode(self, text: str) -> NDArray[np.int32]:
        """int32[n]: what the encoder takes for this text, prompt and special tokens included."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The same of several texts, in one call of the library."""
        encodings = self._tokenizer.encode_batch([f"{self._left}{text}{self._right}" for text in texts])
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def behind(self, text: str) -> NDArray[np.int32]:
        """int32[n]: what goes behind a text, as it is behind a letter: some tokenizers begin a text with a blank."""
        letter, both = self._ids("a"), self._ids(f"a{text}")
        if np.array_equal(both[: len(letter)], letter):
            return both[len(letter) :]
        return self._ids(text)

    def _specials(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The tokens before and after a text, found by letting the post-processor dress a letter."""
        dressed = self._tokenizer.encode("a")
        ids = np.array(dressed.ids, dtype=np.int32)
        added = np.array(dressed.special_tokens_mask, dtype=bool)
        own = np.flatnonzero(~added)
        if not len(own) or added[own[0] : own[-1]].any():
            raise EncoderError(
                f"a tokenizer that makes {dressed.tokens} of the letter 'a'",
                "A tokenizer that adds its special tokens before and after a text",
                "Choose another model, or repair its tokenizer.json",
            )
        before = np.concatenate((ids[: own[0]], self._ids(self._left)))
        return before, np.concatenate((self.behind(self._right), ids[own[-1] + 1 :]))

    def _ids(self, text: str) -> NDArray[np.int32]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids if text else []
        return np.array(ids, dtype=np.int32)


def load_tokenizer(file: Path, prompt: str = "") -> Tokenizer:
    """Load a tokenizer.json, truncation and padding reset; `prompt` goes before every text, or around it.

    Raises EncoderError where the file cannot be read, or is not a tokenizer.
    """
    try:
        return Tokenizer(file.read_bytes(), prompt)
    except EncoderError:
        raise
    except OSError as error:
        raise EncoderError(f"tokenizer {file} cannot be read: {error}", "A tokenizer.json") from None
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for a file it cannot parse
        raise EncoderError(
            f"tokenizer {file} cannot be loaded: {error}", "A tokenizer.json of the tokenizers library"
        ) from None


def _segments(text: str, seam: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Cut a text before a line's end, else before a space, else at the next seam however far."""
    start = 0
    while len(text) - start > _SEGMENT_CHARS:
        limit = start + _SEGMENT_CHARS
        cut = text.rfind("\n", start + 1, limit)
        if cut < 0:
            cut = text.rfind(" ", start + 1, limit)
        if cut < 0:
            found = seam.search(text, limit)
            cut = found.start() if found else len(text)
        if cut == len(text):
            break
        yield start, cut
        start = cut
    yield start, len(text)


def _unpack(encoding: tokenizers.Encoding) -> Tokens:
    """The library's lists as arrays; flattening is twice as fast as `np.array` of a list of tuples."""
    ids = np.array(encoding.ids, dtype=np.int32)
    spans = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(ids))
    return Tokens(ids, spans[::2], spans[1::2])


def _join(parts: list[Tokens]) -> Tokens:
    """Parts of one text as one; array by array, so that not all is held twice."""
    if len(parts) == 1:
        return parts[0]
    ids = np.concatenate([part.ids for part in parts])
    starts = np.concatenate([part.starts for part in parts])
    ends = np.concatenate([part.ends for part in parts])
    return Tokens(ids, starts, ends)


def _trim(text: str, tokens: Tokens) -> Tokens:
    """Take white space out of the spans: byte-level and SentencePiece tokenizers count it as the word's."""
    if not len(tokens.ids):
        return tokens
    solid = np.fromiter((not c.isspace() for c in text), bool, len(text))
    place = np.arange(len(text) + 1)
    next_solid = np.append(np.where(solid, place[:-1], len(text)), len(text))
    next_solid = np.minimum.accumulate(next_solid[::-1])[::-1]
    solid_end = np.maximum.accumulate(np.insert(np.where(solid, place[1:], 0), 0, 0))
    starts = np.maximum.accumulate(np.minimum(next_solid[tokens.starts], tokens.ends))
    ends = np.maximum.accumulate(np.maximum(solid_end[tokens.ends], starts))
    return Tokens(tokens.ids, starts, ends)


def _cuts_cleanly(spec: dict[str, Any]) -> bool:
    """Decide from tokenizer.json: what is listed here was thought through, all else is cut the slow way.

    Words must end at white space before any model sees them, and no normalizer may look across it. Byte-level
    and Metaspace tokenizers make the space part of the next word; an added token with a space could be cut.
    """
    normalizers = {"BertNormalizer", "Lowercase", "StripAccents", "NFC", "NFD", "NFKC", "NFKD"}
    splitters = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
    before = _steps(spec["normalizer"], "normalizers")
    words = _steps(spec["pre_tokenizer"], "pretokenizers")
    return (
        spec["model"]["type"] in {"WordPiece", "WordLevel"}
        and all(step["type"] in normalizers for step in before)
        and words[:1] != []
        and words[0]["type"] in splitters
        and all(step["type"] in splitters | {"Digits", "Punctuation"} for step in words)
        and not any(SPACE.search(token["content"]) for token in spec["added_tokens"])
    )


def _seam(spec: dict[str, Any]) -> re.Pattern[str]:
    """Where a text may be taken apart: at white space, and for BERT behind its punctuation too."""
    first = _steps(spec["pre_tokenizer"], "pretokenizers")[:1]
    inside = "".join(token["content"][:-1] for token in spec["added_tokens"])
    sure = "".join(c for c in _PUNCTUATION if c not in inside)
    if not first or first[0]["type"] != "BertPreTokenizer" or not sure:
        return SPACE
    return re.compile(f"[{SPACES}]|(?<=[{re.escape(sure)}])")


def _steps(step: dict[str, Any] | None, members: str) -> Sequence[dict[str, Any]]:
    """A step of tokenizer.json as a flat list: nothing, itself, or the members of a Sequence."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [inner for member in step[members] for inner in _steps(member, members)]
