"""Sentences of a text that stand for what somebody could ask for."""

from __future__ import annotations

from itertools import pairwise

from pipeline.chunking.boundaries import sentence_starts

LEAST_WORDS = 4
"""How many words a sentence has that says something by itself."""


def whole_sentences(text: str) -> list[str]:
    """The sentences of at least four words, in order, with single blanks between their words."""
    starts = [0, *sentence_starts(text), len(text)]
    sentences = (" ".join(text[start:end].split()) for start, end in pairwise(starts))
    return [sentence for sentence in sentences if len(sentence.split()) >= LEAST_WORDS]
