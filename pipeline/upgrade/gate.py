"""The gate between two versions of a collection: readers go over to the new one only if nothing speaks against it.

Whatever cannot be decided holds. The same checks judge a collection of which a part was mapped by a bridge: what its
searches find is what counts, however its vectors were made.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DEFAULT_ENCODER, EncoderConfig, GateConfig, Settings
from pipeline.errors import CollectionMismatch
from pipeline.evaluation import read_queries
from pipeline.evaluation.bm25 import rank_by_words
from pipeline.evaluation.bootstrap import paired
from pipeline.schemas import Observer, Progress
from pipeline.search import Searcher
from pipeline.stores import NEXT, Store, collection, count_stored, name_of
from pipeline.upgrade.asking import AT, ann_recall, ask, overlap
from pipeline.upgrade.completeness import check_documents, check_points, compare_versions
from pipeline.upgrade.decision import Check, Outcome, judge_difference, judge_share
from pipeline.upgrade.questions import Questions, read_questions, sample_questions, texts_of
from pipeline.upgrade.tasks import answer_task, open_task
from pipeline.upgrade.verdict import Compared, Verdict, compare_ranked

_MOST_TEXTS = 200_000  # chunks whose words are held in memory
_MOST_VECTORS = 200  # queries whose exact answers are computed
# Known items are found by their words, so that a better encoder can lose a little: mpnet against MiniLM found -0.034 of
# them on a set where it is +0.090 better by what people judged. A bad one loses much: -0.298. Between holds.
_LOST_ITEMS = 0.1


@dataclass(frozen=True)
class Golden:
    """What versions are asked: queries (Parquet: id, text), their judgements, and judged tasks beside them."""

    queries: Path | None = None
    qrels: Path | None = None
    tasks: tuple[str, ...] = ()


def judge_upgrade(
    store: Store,
    settings: Settings,
    golden: Golden = Golden(),
    observe: Observer = lambda _: None,
    *,
    behind: bool = False,
    moved: str = "",
) -> Verdict:
    """Judge `NAME@next` against `NAME` in an open store, by the encoders that their contracts name; changes nothing.

    behind: documents that only one of them holds as they are do not count, as whoever promotes brings them over.
    moved: where the encoder of `NAME@next` is now, "" where the contract says.
    Raises CollectionMismatch where there is no such version, and what loading an encoder raises.
    """
    name = name_of(settings.store.collection)
    hows = _run_only(settings.encoder), _run_only(settings.encoder, moved)
    with ExitStack() as stack:
        sides = []
        for alias, how in zip((name, name + NEXT), hows, strict=True):
            physical = collection.resolve(store, alias)
            if physical is None:
                raise CollectionMismatch(
                    f"no collection {alias!r}",
                    "A version to judge",
                    "Run headwater reindex --to ENCODER first",
                )
            config = settings.store.model_copy(update={"collection": alias})
            observe(Progress("preparing the encoder"))
            sides.append(Searcher.open(store, physical, config, how))
            stack.callback(sides[-1].close)
        return judge(store, sides[0], sides[1], golden, settings, observe, behind=behind, moved=moved)


def judge(
    store: Store,
    old: Searcher,
    new: Searcher,
    golden: Golden,
    settings: Settings,
    observe: Observer = lambda _: None,
    *,
    behind: bool = False,
    moved: str = "",
) -> Verdict:
    """Whether readers of `old` may be moved to `new`; changes nothing, and may be repeated."""
    bars = settings.gate
    tasks = [open_task(name) for name in golden.tasks]
    questions = _questions(store, old, golden, bars.sample)
    documents = compare_versions(store, (old.physical, old.contract), (new.physical, new.contract), observe)
    before, after = ask(questions, old, new, observe)
    words = _by_words(store, new, questions, observe) if questions.judged else None
    compared = [compare_ranked(questions, before.ranked, after.ranked, words)]
    if golden.queries and not golden.qrels:
        more = ask(_unjudged(golden.queries), old, new, observe)
        before, after = before.and_more(more[0]), after.and_more(more[1])
    observe(Progress("comparing with exact searches"))
    found = ann_recall(new, after.vectors[:_MOST_VECTORS])
    encoders = (
        old.contract.encoder_config(_run_only(settings.encoder)),
        new.contract.encoder_config(_run_only(settings.encoder, moved)),
    )
    for task in tasks:
        answers = answer_task(task, settings, *encoders, observe)
        compared.append(compare_ranked(answers.questions, answers.old, answers.new, answers.words))
    checks = [
        *([] if behind else [check_documents(documents)]),
        check_points(documents),
        *(check for one in compared for check in _ranking(one, bars)),
        _graph(found, bars),
        _latency(before.seconds, after.seconds, bars),
    ]
    shared = overlap(before.ranked, after.ranked)
    mean = round(float(shared.mean()), 4) if len(shared) else None
    return Verdict(old.physical, new.physical, tuple(checks), tuple(compared), documents, mean)


def _questions(store: Store, old: Searcher, golden: Golden, count: int) -> Questions:
    if golden.queries and golden.qrels:
        return read_questions(golden.queries, golden.qrels)
    return sample_questions(store, old.physical, old.contract.profile, count)


def _unjudged(queries: Path) -> Questions:
    ids, texts = read_queries(queries)
    asked = {id: text for id, text in zip(ids, texts, strict=True) if text.strip()}
    return Questions(asked, {}, False, queries.name)


def _by_words(
    store: Store, searcher: Searcher, questions: Questions, observe: Observer
) -> dict[str, list[str]] | None:
    """What BM25 finds in the texts of the collection; None where they are too many to hold."""
    if count_stored(store, searcher.physical).points > _MOST_TEXTS:
        return None
    observe(Progress("ranking by words"))
    owners, texts = texts_of(store, searcher.physical, searcher.contract.profile, questions)
    found = rank_by_words(texts, owners, list(questions.texts.values()), AT)
    return dict(zip(questions.texts, found, strict=True))


def _ranking(found: Compared, bars: GateConfig) -> list[Check]:
    """New against old on the same questions; and that new is not worse than words alone where old was better."""
    name = f"ranking: {found.source}"
    if found.difference is None:
        why = "there is nothing to ask: no chunk keeps a text with a sentence; give judged --queries and --qrels"
        return [Check(name, "hold", None, f"-{bars.tolerance:g}", why)]
    lost_items = 0.0 if found.judged else _LOST_ITEMS
    outcome, sentence = judge_difference(found.difference, bars.tolerance, bars.least, lost_items)
    if outcome == "hold" and not found.judged:
        sentence += "; sentences favour what goes by words: judged --queries and --qrels say more"
    old, new = found.old[found.measure], found.new[found.measure]
    said = f"{found.measure} {old:.3f} → {new:.3f}, {sentence}"
    checks = [Check(name, outcome, round(found.difference.mean, 5), f"≥ -{bars.tolerance:g}", said)]
    if found.words is not None and found.over_words is not None:
        over, words = paired(found.over_words), found.words[found.measure]
        before = paired(found.over_words - found.differences)
        lost = over.high < 0 <= before.high
        said = f"BM25 {words:.3f}, new less that {over}"
        said += (
            ": the new version ranks certainly worse than words alone, and the old one does not"
            if lost
            else ""
        )
        verdict: Outcome = "hold" if lost else "pass"
        checks.append(
            Check(f"words: {found.source}", verdict, round(over.mean, 5), "not below, or old is", said)
        )
    return checks


def _graph(found: NDArray[np.float64], bars: GateConfig) -> Check:
    bar = f"≥ {bars.ann_recall:g}"
    if not len(found):
        return Check("graph", "hold", None, bar, "nothing was asked")
    recall = paired(found)
    outcome, sentence = judge_share(recall, bars.ann_recall, bars.least)
    said = f"of the 10 nearest chunks searches find {sentence}"
    return Check("graph", outcome, round(recall.mean, 5), bar, said)


def _latency(old: NDArray[np.float64], new: NDArray[np.float64], bars: GateConfig) -> Check:
    bar = f"p99 ≤ {bars.max_latency_s:g} s"
    if len(new) < bars.least:
        return Check("latency", "hold", None, bar, f"{len(new)} queries: at least {bars.least} are needed")
    (old50, old99), (new50, new99) = (np.quantile(each, (0.5, 0.99)).tolist() for each in (old, new))
    said = (
        f"a query and its search take {1000 * old50:.1f} → {1000 * new50:.1f} ms at p50, "
        f"{1000 * old99:.1f} → {1000 * new99:.1f} ms at p99"
    )
    return Check("latency", "pass" if new99 <= bars.max_latency_s else "fail", round(new99, 5), bar, said)


def _run_only(how: EncoderConfig, moved: str = "") -> EncoderConfig:
    """How encoders are run, without which: that is for the contracts to say, but for where one has moved to."""
    return how.model_copy(update={"model": moved or DEFAULT_ENCODER, "codes": ""})
