"""The same questions put to two versions, one query at a time, as readers will: what each finds, and how soon."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.retrieval import query_metrics
from pipeline.schemas import Observer, Progress
from pipeline.search import Searcher
from pipeline.upgrade.questions import Questions

AT = 10


@dataclass(frozen=True, eq=False)
class Answers:
    """What a version answered: `ranked` the documents of each query, best first; `vectors` float32[queries, dims].

    seconds: float64[queries], of embedding the query and searching, one after the other.
    """

    ranked: Mapping[str, Sequence[str]]
    vectors: NDArray[np.float32]
    seconds: NDArray[np.float64]

    def and_more(self, more: Answers) -> Answers:
        """These, and those to other questions."""
        return Answers(
            {**self.ranked, **more.ranked},
            np.concatenate([self.vectors, more.vectors]),
            np.concatenate([self.seconds, more.seconds]),
        )


def ask(questions: Questions, old: Searcher, new: Searcher, observe: Observer) -> tuple[Answers, Answers]:
    """Ask both, taking turns, so that what slows the machine down slows both; each query is embedded once by each."""
    sides = _Asked(old, questions.name), _Asked(new, questions.name)
    for number, (id, text) in enumerate(questions.texts.items()):
        for side in sides:
            side.ask(id, text)
        observe(Progress("asking both versions", number + 1, len(questions.texts)))
    return sides[0].answers(), sides[1].answers()


class _Asked:
    """A version, and what it has answered so far."""

    def __init__(self, searcher: Searcher, name: Callable[[str, str], str]) -> None:
        self._searcher = searcher
        self._name = name
        self._ranked: dict[str, list[str]] = {}
        self._vectors: list[NDArray[np.float32]] = []
        self._seconds: list[float] = []
        self._find("warm up")  # what is loaded by the first search is not what searches take

    def ask(self, id: str, text: str) -> None:
        """Put one query."""
        since = time.perf_counter()
        vector, documents = self._find(text)
        self._seconds.append(time.perf_counter() - since)
        self._vectors.append(vector)
        self._ranked[id] = documents

    def answers(self) -> Answers:
        """All of them."""
        dims = self._searcher.contract.dims
        return Answers(
            self._ranked, np.array(self._vectors, np.float32).reshape(-1, dims), np.array(self._seconds)
        )

    def _find(self, text: str) -> tuple[NDArray[np.float32], list[str]]:
        vectors = self._searcher.embed([text])
        results = self._searcher.find(vectors, AT, by_document=True)[0]
        return vectors[0], list(dict.fromkeys(self._name(one.namespace, one.document_id) for one in results))


def scores(ranked: Mapping[str, Sequence[str]], questions: Questions) -> dict[str, NDArray[np.float64]]:
    """float64[queries] by measure, in the order of the questions: nDCG@10 of judged ones, else MRR@10; recall@10."""
    ids = list(questions.texts)
    relevant = [{d for d, grade in questions.relevant[id].items() if grade > 0} for id in ids]
    pairs = [(list(ranked.get(id, ()))[:AT], right) for id, right in zip(ids, relevant, strict=True)]
    recall = np.array([len(right.intersection(found)) / len(right) for found, right in pairs])
    if not questions.judged:
        return {"MRR@10": np.array([_reciprocal(*pair) for pair in pairs]), "recall@10": recall}
    each = query_metrics(ranked, questions.relevant)
    return {"nDCG@10": np.array([each[id]["ndcg@10"] for id in ids]), "recall@10": recall}


def overlap(old: Mapping[str, Sequence[str]], new: Mapping[str, Sequence[str]]) -> NDArray[np.float64]:
    """float64[queries]: the share of the 10 best documents of the old version that are among those of the new one."""
    pairs = [(set(found[:AT]), set(new.get(id, ())[:AT])) for id, found in old.items()]
    return np.array([len(left & right) / max(len(left), 1) for left, right in pairs])


def ann_recall(searcher: Searcher, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64[queries]: the share of the 10 nearest chunks, all compared, that an ordinary search finds."""
    found, exact = (
        [
            {(one.namespace, one.document_id, one.chunk_index) for one in results}
            for results in searcher.find(vectors, AT, exact=e)
        ]
        for e in (False, True)
    )
    return np.array([len(a & b) / max(len(b), 1) for a, b in zip(found, exact, strict=True)])


def worst(
    questions: Questions,
    old: Mapping[str, Sequence[str]],
    new: Mapping[str, Sequence[str]],
    differences: NDArray[np.float64],
    count: int = 20,
) -> list[dict[str, Any]]:
    """The queries that lost most, as JSON values, worst first."""
    ids = list(questions.texts)
    order = [n for n in np.argsort(differences, kind="stable")[:count].tolist() if differences[n] < 0]
    return [
        {
            "query_id": ids[n],
            "query": questions.texts[ids[n]],
            "difference": round(float(differences[n]), 4),
            "relevant": sorted(d for d, grade in questions.relevant[ids[n]].items() if grade > 0)[:AT],
            "old": list(old.get(ids[n], ()))[:3],
            "new": list(new.get(ids[n], ()))[:3],
        }
        for n in order
    ]


def _reciprocal(found: Sequence[str], right: set[str]) -> float:
    return next((1 / place for place, document in enumerate(found, 1) if document in right), 0.0)
