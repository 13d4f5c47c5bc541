"""Retrieval of one sentence out of long documents, generated: personalised passkeys and needles (LongEmbed, §4.1).

One length at a time: 100 candidates of about as many words, of which 50 are asked for, each by a query that only one of
them answers. Lengths are in words, three to four nominal tokens, so that they do not depend on a tokenizer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

from pipeline.errors import UsageError
from pipeline.evaluation.facts import FACTS, FAMILY_NAMES, GIVEN_NAMES, PROSE

CANDIDATES, QUERIES = 100, 50
_WORDS_A_TOKEN = 0.75
_FILLER = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")

Task = Literal["passkey", "needle"]
TASKS: tuple[Task, ...] = ("passkey", "needle")


@dataclass(frozen=True)
class Haystack:
    """One task at one length: `queries[n]` is answered by `documents[n]` and by none of the others."""

    task: Task
    length: int
    documents: Sequence[str]
    queries: Sequence[str]


def make(task: Task, length: int, seed: int, prose: Sequence[str]) -> Haystack:
    """A task of `length` nominal tokens; equal arguments make equal texts. `prose`: sentences, for needles."""
    draw = random.Random(f"{task} {length} {seed}")
    budget = int(_WORDS_A_TOKEN * length)
    made = _passkeys(draw, budget) if task == "passkey" else _needles(draw, budget, prose)
    documents, queries = zip(*made, strict=True)
    return Haystack(task, length, documents, queries[:QUERIES])


def _passkeys(draw: random.Random, budget: int) -> list[tuple[str, str]]:
    everybody = [f"{given} {family}" for given in GIVEN_NAMES.split() for family in FAMILY_NAMES.split()]
    names = draw.sample(everybody, CANDIDATES)
    made = []
    for name in names:
        key = draw.randint(1, 50_000)
        line = f"{name}'s pass key is {key}. Remember it. {key} is the pass key for {name}."
        query = f"what is the passkey for {name}?"
        room = budget - _words(line) - _words(query)  # as long as the released texts are
        made.append((_hide(draw, f"\n{line}\n", _fill(cycle(_FILLER), room)), query))
    return made


def _needles(draw: random.Random, budget: int, prose: Sequence[str]) -> list[tuple[str, str]]:
    facts = draw.sample(FACTS, CANDIDATES)
    room = budget - max(_words(fact) for fact, _ in facts)
    sentences = _fill(prose, room)
    there = sum(map(_words, sentences))
    if len(sentences) == len(prose) and there < room:
        raise UsageError(
            f"{there:,} words of prose for documents of {budget:,}",
            "Prose that does not repeat itself, at least as long as a document",
            "Give more of it with --haystack, or lower --lengths",
        )
    if there < room:  # the last sentence is cut, as the budget says
        sentences.append(" ".join(prose[len(sentences)].split()[: room - there]))
    return [(_hide(draw, fact, sentences), question) for fact, question in facts]


def _fill(sentences: Sequence[str] | cycle[str], words: int) -> list[str]:
    """The first sentences of so many words at most."""
    taken: list[str] = []
    for sentence in sentences:
        words -= _words(sentence)
        if words < 0:
            break
        taken.append(sentence)
    return taken


def _hide(draw: random.Random, line: str, sentences: Sequence[str]) -> str:
    """The line between two sentences, anywhere."""
    at = draw.randint(0, len(sentences))
    return " ".join([*sentences[:at], line, *sentences[at:]]).strip()


def _words(text: str) -> int:
    return len(text.split())


def read_prose(file: Path | None) -> list[str]:
    """The sentences of a text file or of the column `text` of a Parquet file, but for those that know a fact of ours.

    None: prose of our own, sentences put together from words, no two of them the same.
    """
    if file is None:
        return _own_prose()
    try:
        text = _read_parquet(file) if file.suffix == ".parquet" else file.read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"--haystack {file} cannot be read: {error}",
            "A text file, or a Parquet file with a column text",
            "Check --haystack",
        ) from None
    known = re.compile(r"\b(" + "|".join(re.escape(word) for word in _subjects()) + r")\b", re.IGNORECASE)
    found = dict.fromkeys(" ".join(sentence.split()) for sentence in _SENTENCE.split(text))
    return [sentence for sentence in found if 4 <= _words(sentence) <= 60 and not known.search(sentence)]


def _read_parquet(file: Path) -> str:
    import pyarrow.parquet as pq

    column = pq.read_table(file, columns=["text"])["text"]
    texts = column.to_pylist()
    if not all(text is None or isinstance(text, str) for text in texts):
        raise UsageError(
            f"column 'text' of {file} is of type {column.type}", "Sentences of prose", "Convert the column"
        )
    return "\n".join(text or "" for text in texts)


def _subjects() -> set[str]:
    """The words that the questions ask about: the last capitalised ones, or the last one."""
    return {re.findall(r"\w[\w' -]*(?=\?)", question)[-1].split()[-1] for _, question in FACTS}


def _own_prose() -> list[str]:
    draw = random.Random("prose")
    seen: dict[str, None] = {}
    while len(seen) < 3_000:
        who, did, what, where, when = (draw.choice(words.split("|")) for words in PROSE)
        order = draw.randint(0, 2)
        if order == 0:
            sentence = f"{when} {who} {did} {what} {where}."
        elif order == 1:
            sentence = f"{who} {did} {what} {where} {when}."
        else:
            sentence = f"{where} {who} {did} {what} {when}."
        seen.setdefault(sentence[0].upper() + sentence[1:])
    return list(islice(seen, 3_000))
