"""How strongly a document's structure asks for a cut before each of its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from sentencex import get_sentence_boundaries

from pipeline.tokens import Tokens

# sentencex (Wikimedia, MIT) finds sentences at over 100 MB/s and gives code points, but its time grows with
# the square of the sentences in a call, and an unclosed quotation mark hides those up to the paragraph's end.
# Short windows bound both. Its English abbreviations do for all languages: a wrong guess only moves a cut.
_WINDOW_CHARS = 2048
_LANGUAGE = "en"

_BULLETS = np.array([ord(c) for c in "-*+•‣◦–"], dtype=np.uint32)
_WHITE = np.array([chr(code).isspace() for code in range(0x3001)] + [False])
_BLOCK_TOKENS = 1 << 17


class Boundary(IntEnum):
    """What lies before a token, weakest first; a cut is made at the strongest one that fits."""

    KEEP = 0  # inside of what is kept in one piece, such as a code fence that fits
    TOKEN = 1  # inside of a word
    WORD = 2
    LINE = 3
    SENTENCE = 4
    ITEM = 5  # a list item, a table's row, a sentence that ends with its line
    PARAGRAPH = 6
    HEADING = 7


def plain_boundaries(text: str, tokens: Tokens) -> NDArray[np.uint8]:
    """uint8[n]: the Boundary before each token of a plain text; the first entry is meaningless."""
    boundaries = np.full(len(tokens.ids), Boundary.TOKEN, dtype=np.uint8)
    for first in range(1, len(boundaries), _BLOCK_TOKENS):
        stop = min(first + _BLOCK_TOKENS, len(boundaries))
        boundaries[first:stop] = _white_space(
            text, tokens.ends[first - 1 : stop - 1], tokens.starts[first:stop]
        )
    sentences = np.fromiter(sentence_starts(text), np.int64)
    begin = token_at(tokens, sentences)
    found = boundaries[begin]
    boundaries[begin] = np.where(found >= Boundary.LINE, np.maximum(found, Boundary.ITEM), Boundary.SENTENCE)
    return boundaries


def token_at(tokens: Tokens, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[m]: the first token at or behind each place; places behind the last token are left out."""
    found = np.searchsorted(tokens.starts, places)
    return found[found < len(tokens.starts)]


def sentence_starts(text: str) -> Iterator[int]:
    """Yield in code points where sentences and paragraphs begin, ascending, the text's first left out."""
    at = 0
    while at < len(text):
        window = text[at : at + _WINDOW_CHARS]
        last = at + len(window) == len(text)
        starts = [at + found["start_index"] for found in get_sentence_boundaries(_LANGUAGE, window)][1:]
        yield from starts
        # the window may have cut its last sentence short: the next one begins with it
        at = starts[-1] if starts and not last else at + len(window)


def _white_space(text: str, lows: NDArray[np.int64], highs: NDArray[np.int64]) -> NDArray[np.uint8]:
    """uint8[m]: the Boundary that the white space of each gap `text[low:high]` makes."""
    lows = np.minimum(lows, highs)  # several tokens of one character share its span
    base = int(lows[0])
    codes = np.frombuffer((text[base : int(highs[-1]) + 1] or " ").encode("utf-32-le"), np.uint32)
    feed = codes == ord("\n")
    alone = codes == ord("\r")
    alone[:-1] &= ~feed[1:]
    white = _within(_WHITE[np.minimum(codes, len(_WHITE) - 1)], lows - base, highs - base)
    lines = _within(feed | alone, lows - base, highs - base)
    bullet = np.isin(codes[np.minimum(highs - base, len(codes) - 1)], _BULLETS)
    kinds = [(lines > 1), (lines == 1) & bullet, lines == 1, white > 0]
    ranks = [Boundary.PARAGRAPH, Boundary.ITEM, Boundary.LINE, Boundary.WORD]
    return np.select(kinds, ranks, Boundary.TOKEN).astype(np.uint8)


def _within(marks: NDArray[np.bool_], lows: NDArray[np.int64], highs: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[m]: how many marks lie in each [low, high)."""
    before = np.concatenate(([0], np.cumsum(marks)))
    counted: NDArray[np.int64] = before[highs] - before[lows]
    return counted
