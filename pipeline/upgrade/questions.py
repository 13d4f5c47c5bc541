"""What a gate asks both versions: judged queries, queries without judgements, or sentences of stored chunks.

A sentence is a known item: a version that is any good finds the document that it was taken from.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.chunking.sentences import LEAST_WORDS, whole_sentences
from pipeline.errors import UsageError
from pipeline.evaluation import Qrels, read_qrels, read_queries
from pipeline.stores import OURS, Store, profile_named
from pipeline.upgrade.sampling import draw

_PAGE = 200


@dataclass(frozen=True)
class Questions:
    """Queries by id, and what is relevant to each; `judged` by people, or known to be where the query is from.

    Documents are named as `document_name` does; judgements may name them by their ids alone.
    """

    texts: Mapping[str, str]
    relevant: Qrels
    judged: bool
    source: str

    @cached_property
    def documents(self) -> frozenset[str]:
        """All that is said to be relevant, or not, to any query."""
        return frozenset(document for grades in self.relevant.values() for document in grades)

    def name(self, namespace: str, document_id: str) -> str:
        """What a document is called among these questions and their answers."""
        name = document_name(namespace, document_id)
        return document_id if self.judged and name not in self.documents else name


def document_name(namespace: str, document_id: str) -> str:
    """A document by its id, in a namespace behind that: two namespaces may have the same ids."""
    return f"{namespace}/{document_id}" if namespace else document_id


def read_questions(queries: Path, qrels: Path) -> Questions:
    """Judged queries of two Parquet files; only those with a relevant document count.

    Raises UsageError where there is none, and as `read_queries` and `read_qrels` do.
    """
    judgements = read_qrels(qrels)
    ids, texts = read_queries(queries)
    asked = {
        id: text
        for id, text in zip(ids, texts, strict=True)
        if text.strip() and any(grade > 0 for grade in judgements.get(id, {}).values())
    }
    if not asked:
        raise UsageError(
            f"no query of {queries} has a relevant document in {qrels}",
            "Judgements of these queries: query_id is the id of a query",
            "Check --queries and --qrels",
        )
    return Questions(asked, {id: judgements[id] for id in asked}, True, queries.name)


def sample_questions(store: Store, physical: str, profile: str, count: int, seed: int = 0) -> Questions:
    """`count` sentences of chunks drawn by a seed, of as many chunks as there are; fewer where there are no more."""
    choose = random.Random(seed)
    drawn: list[tuple[str, str, list[str]]] = []
    for chunk in draw(store, physical, count, seed):
        ours = chunk.payload[OURS]
        sentences = _sentences(_text(chunk.payload, profile))
        document = document_name(ours["namespace"], ours["document_id"])
        name = f"{document}#{ours['chunk_index']}"
        drawn.append((name, document, choose.sample(sentences, len(sentences))))
    texts: dict[str, str] = {}
    relevant: dict[str, dict[str, int]] = {}
    for number in range(max((len(sentences) for _, _, sentences in drawn), default=0)):
        for name, document, sentences in drawn:
            if number < len(sentences) and len(texts) < count:
                id = f"{name}.{number}"
                texts[id], relevant[id] = sentences[number], {document: 1}
    return Questions(texts, relevant, False, "sentences of stored chunks")


def texts_of(store: Store, physical: str, profile: str, questions: Questions) -> tuple[list[str], list[str]]:
    """The documents by name and the texts of all chunks of ours, in memory."""
    owners, texts = [], []
    offset: str | None = None
    while True:
        records, offset = store.scroll(physical, limit=_PAGE, offset=offset)
        for payload in (one.payload for one in records if one.payload and OURS in one.payload):
            owners.append(questions.name(payload[OURS]["namespace"], payload[OURS]["document_id"]))
            texts.append(_text(payload, profile))
        if offset is None:
            return owners, texts


def _text(payload: Mapping[str, Any], profile: str) -> str:
    try:
        return profile_named(profile).read(payload)[0]
    except KeyError:  # a collection that keeps no text
        return ""


def _sentences(text: str) -> list[str]:
    """A text's sentences, or the first half of the words of one that is a single sentence; none of a few words."""
    whole = whole_sentences(text)
    if len(whole) > 1:
        return whole
    words = text.split()
    half = len(words) // 2
    return [" ".join(words[:half])] if half >= LEAST_WORDS else []
