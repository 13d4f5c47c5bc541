"""BM25 (Robertson & Zaragoza 2009, as Lucene computes it), the ranking by words that an encoder should beat."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np


def rank_by_words(
    texts: Sequence[str], owners: Sequence[str], queries: Sequence[str], k: int
) -> list[list[str]]:
    """The `k` documents best by their best chunk for each query, best first; fewer where no word is shared.

    `owners` names each text's document. All texts are held in memory twice.
    """
    import bm25s  # half a second that only this takes

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it wants to be heard
    if not any(text.strip() for text in texts):
        return [[] for _ in queries]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), stopwords="en", show_progress=False), show_progress=False)
    asked = bm25s.tokenize(list(queries), stopwords="en", return_ids=False, show_progress=False)
    depth = min(10 * k, len(texts))
    found: list[list[str]] = []
    for words in asked:
        if not words:
            found.append([])
            continue
        numbers, scores = index.retrieve([words], k=depth, show_progress=False)
        chunks = np.asarray(numbers[0])[np.asarray(scores[0]) > 0].tolist()
        found.append(list(dict.fromkeys(owners[n] for n in chunks))[:k])
    return found
