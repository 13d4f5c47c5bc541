"""Where a tokenized document is cut: greedily, at the strongest boundary of the second half of what fits.

Where that half has no end of a sentence, one in the second quarter is better than a cut inside of a sentence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.chunking.boundaries import Boundary
from pipeline.tokens import SPACE, Tokenizer, Tokens


class Unsplittable(Exception):
    """A single character has more tokens than a chunk may have; the chunker rejects the document."""


@dataclass(frozen=True)
class Span:
    """A chunk: `text[start:end]` in code points, and its tokens as the encoder takes them (int32[n])."""

    start: int
    end: int
    token_ids: NDArray[np.int32]


class Cutter:
    """Cuts one document into spans of at most `budget` tokens, special tokens and prompt included.

    The state while cutting is a place in the text, not a token, because a word that is too long may be cut
    inside of a token. Every place is passed: spans and the white space between them make up the whole text.
    """

    def __init__(
        self,
        text: str,
        tokens: Tokens,
        boundaries: NDArray[np.uint8],
        tokenizer: Tokenizer,
        budget: int,
        overlap: int = 0,
    ) -> None:
        self._text = text
        self._tokens = tokens
        self._count = len(tokens.ids)
        self._boundaries = boundaries
        self._tokenizer = tokenizer
        self._budget = budget
        self._room = budget - tokenizer.special_tokens
        self._overlap = overlap

    def spans(self) -> Iterator[Span]:
        """Yield the document's chunks in order. Raises Unsplittable."""
        start = done = covered = 0
        while done < len(self._text):
            span, end = self._span(start, done)
            if end <= done:  # tokenizing again made the overlap too long to get beyond it
                span, end = self._span(done, done)
            start, done = end, end
            if span.end > max(span.start, covered):  # else only white space is new in it
                yield span
                start, covered = self._step_back(span, end), span.end

    def _span(self, start: int, done: int) -> tuple[Span, int]:
        """The span that begins at `start`, and the place where it was cut, behind `done` if that fits."""
        first = self._token_at(start)
        limit = min(first + self._room, self._count)
        while True:
            stop = limit if limit == self._count else self._choose(first, self._token_at(done), limit)
            end = self._place(stop)
            span = self._make(start, end, first, stop)
            excess = len(span.token_ids) - self._budget
            if excess <= 0:
                return span, end
            if stop - excess <= first:
                return self._squeeze(start, end)
            limit = stop - excess

    def _choose(self, first: int, done: int, limit: int) -> int:
        """The token to cut before: in (first, limit], and in (done, limit] where that is not empty."""
        least = min(max(first, done) + 1, limit)
        rest = self._count - first
        if rest < 1.5 * self._room:  # the last two: share what is left, so that no scrap remains
            low = max(least, first + max(rest - self._room + self._overlap, rest // 4))
            high = min(limit, first + 3 * rest // 4)
            if low <= high and (stop := self._strongest(low, high, Boundary.WORD)):
                return stop
        low, high = min(first + self._room // 2, limit), limit
        quarter = max(least, first + (low - first) // 2)
        sentence = self._strongest(max(low, least), high, Boundary.SENTENCE)
        if stop := sentence or self._strongest(quarter, high, Boundary.SENTENCE):
            return stop
        while high >= least:  # the second half, then the second quarter, …
            if stop := self._strongest(max(low, least), high, Boundary.WORD):
                return stop
            low, high = first + (low - first) // 2, low - 1
        return self._strongest(least, limit, Boundary.TOKEN) or limit

    def _strongest(self, low: int, high: int, least: Boundary) -> int:
        """The last of the strongest boundaries in [low, high], or 0 where none is as strong as `least`."""
        window = self._boundaries[low : high + 1]
        best = high - int(window[::-1].argmax())
        return best if self._boundaries[best] >= least else 0

    def _step_back(self, span: Span, end: int) -> int:
        """Where the next span begins: about `overlap` tokens before `end`, at white space, or at `end`."""
        done = self._token_at(end)
        low = max(done - self._overlap, self._token_at(span.start) + 1)
        high = done - max(1, self._overlap // 2)
        if not self._overlap or low > high or done == self._count:
            return end
        best = low + int(self._boundaries[low : high + 1].argmax())
        place = self._place(best)
        return place if self._boundaries[best] >= Boundary.WORD and span.start < place < end else end

    def _token_at(self, place: int) -> int:
        """The first token that ends behind a place."""
        return int(np.searchsorted(self._tokens.ends, place, side="right"))

    def _place(self, stop: int) -> int:
        """The place of a cut before a token: at white space if there is some, else behind the last token."""
        if stop == self._count:
            return len(self._text)
        low, high = int(self._tokens.ends[stop - 1]), int(self._tokens.starts[stop])
        space = SPACE.search(self._text, low, high) if low < high else None
        return space.start() if space else low

    def _make(self, start: int, end: int, first: int, stop: int) -> Span:
        """The span of a piece of the text, white space stripped, with the tokens of exactly that text."""
        low, high = self._strip(start, end)
        if self._is_clean(start) and self._is_clean(end) and first < stop and self._tokenizer.cuts_cleanly:
            inside = self._tokens.starts[first] >= low and self._tokens.ends[stop - 1] <= high
            if inside:
                return Span(low, high, self._tokenizer.model_input(self._tokens.ids[first:stop]))
        return Span(low, high, self._tokenizer.encode(self._text[low:high]))

    def _is_clean(self, place: int) -> bool:
        return place in (0, len(self._text)) or SPACE.match(self._text, place) is not None

    def _strip(self, start: int, end: int) -> tuple[int, int]:
        piece = self._text[start:end]
        end -= len(piece) - len(piece.rstrip())
        return min(end, start + len(piece) - len(piece.lstrip())), end

    def _squeeze(self, start: int, end: int) -> tuple[Span, int]:
        """Halve a piece that no boundary makes small enough until it fits. Raises Unsplittable."""
        while end - start > 1:
            end = start + (end - start) // 2
            low, high = self._strip(start, end)
            span = Span(low, high, self._tokenizer.encode(self._text[low:high]))
            if len(span.token_ids) <= self._budget:
                return span, end
        raise Unsplittable(self._text[start:end])
