"""The gate on collections, and its command; what it decides from values is in test_upgrade_decision."""

from __future__ import annotations

import hashlib
import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
import upgrades
from documents import texts

from pipeline.config import Settings, StoreConfig
from pipeline.errors import UsageError
from pipeline.evaluation.bm25 import rank_by_words
from pipeline.schemas import digest, point_id
from pipeline.search import Searcher
from pipeline.stores import Points, Store, collection, open_store, profile_named
from pipeline.upgrade.completeness import check_documents, check_points, compare_versions
from pipeline.upgrade.decision import (
    Check,
)
from pipeline.upgrade.gate import Golden, judge
from pipeline.upgrade.questions import read_questions, sample_questions
from pipeline.upgrade.report import write_report
from pipeline.versions import Contract

DIMS = 512
STORE = StoreConfig(url="memory:", collection="docs")

# --- on collections


class Words:
    """An encoder of bags of words: `forgetting` of the words count for nothing, which makes it worse."""

    def __init__(self, seed: int, forgetting: float = 0.0) -> None:
        self.seed, self.forgetting = seed, forgetting

    def word(self, word: str) -> np.ndarray:
        number = int.from_bytes(hashlib.sha256(f"{self.seed} {word}".encode()).digest()[:8], "big")
        draw = np.random.default_rng(number)
        row = draw.normal(size=DIMS)
        return row if draw.random() >= self.forgetting else row * 0

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        rows = [sum(map(self.word, text.lower().split()), np.full(DIMS, 0.01)) for text in texts]
        return np.stack(rows).astype(np.float32)

    def close(self) -> None:
        pass


def version(
    store: Store,
    encoder: Words,
    documents: dict[str, str],
    alias: str,
    said: str,
    compatible: Sequence[str] = (),
    **heads: dict[str, object],
) -> Searcher:
    """A collection of one chunk a document, by its id or namespace/id; `heads` changes what the heads say."""
    contract = Contract(said, "m", "fp32", 64, "", "", "c", "", DIMS, "cosine", "plain")
    contract = replace(contract, compatible=dict.fromkeys(compatible, "a bridge"))
    physical = collection.create(store, alias, STORE, DIMS, contract.metadata())
    ids, payloads = [], []
    for name, text in documents.items():
        namespace, _, id = name.rpartition("/")
        ours = {"document_id": id, "namespace": namespace, "chunk_index": 0, "chunk_count": 1, "start": 0}
        ours |= {"end": len(text), "sequence": 0, "encoder_version": said}
        ours |= {"text_hash": digest(text), "metadata_hash": digest("{}")} | heads.get(name, {})
        ids.append(point_id(namespace, id, 0))
        payloads.append(profile_named("plain").write(ids[-1], text, {}, ours))
    if ids:
        store.upsert(physical, Points(ids, {"": encoder.encode_queries(list(documents.values()))}, payloads))
    return Searcher(store, physical, contract, encoder)


@pytest.fixture
def store() -> Iterator[Store]:
    opened = open_store(STORE)
    yield opened
    for left in opened.get_collections().collections:
        opened.delete_collection(left.name)


Both = Callable[..., tuple[Searcher, Searcher]]


@pytest.fixture
def both(store) -> Both:
    def make(
        old: Words, new: Words, documents: dict[str, str], after=None, **heads
    ) -> tuple[Searcher, Searcher]:
        return (
            version(store, old, documents, "docs", "a"),
            version(store, new, documents if after is None else after, "docs@next", "b", **heads),
        )

    return make


def checks(store: Store, sides: tuple[Searcher, Searcher]) -> tuple[object, dict[str, Check]]:
    found = compare_versions(store, *((side.physical, side.contract) for side in sides))
    return found, {check.name: check for check in (check_documents(found), check_points(found))}


def test_all_documents_and_no_others(store, both):
    found, by_name = checks(store, both(Words(0), Words(1), texts(50)))
    assert {check.outcome for check in by_name.values()} == {"pass"}
    assert (found.documents, found.points, found.versions) == (50, 50, {"b": 50})


def test_a_missing_a_changed_and_an_extra_document_are_found(store, both):
    documents = texts(50)
    after = {**documents, "extra": "more of it", "d3": documents["d3"] + " edited"}
    del after["d7"]
    patched = {"metadata_hash": digest('{"year":1}')}
    found, by_name = checks(
        store, both(Words(0), Words(1), documents, after, d9=patched, d11={"sequence": 3})
    )
    assert (found.missing, found.changed, found.extra) == (1, 3, 1)
    assert found.samples == {"missing": ["d7"], "changed": ["d11", "d3", "d9"], "extra": ["extra"]}
    assert by_name["documents"].outcome == "fail"
    assert "d7" in by_name["documents"].sentence


def test_a_document_that_is_being_changed_holds(store, both):
    found, by_name = checks(store, both(Words(0), Words(1), texts(9), d2={"writing": True}))
    assert (found.writing, found.changed) == (1, 0)
    assert by_name["documents"].outcome == "hold"


def test_points_of_a_version_that_the_contract_does_not_list_fail(store, both):
    sides = both(Words(0), Words(1), texts(9), d2={"encoder_version": "a"}, d5={"chunk_count": 2})
    found, by_name = checks(store, sides)
    assert (found.foreign, found.promised, found.points) == (1, 10, 9)
    assert by_name["points"].outcome == "fail"


def gate(
    store: Store,
    sides: tuple[Searcher, Searcher],
    golden: Golden = Golden(),
    behind: bool = False,
    **bars: object,
):
    settings = Settings(store=STORE, gate={"max_latency_s": 30, **bars})
    return judge(store, *sides, golden, settings, behind=behind)


def test_who_brings_documents_over_is_not_refused_for_those_that_are_still_missing(store, both):
    documents = texts(50)
    sides = both(Words(0), Words(0), documents, {id: documents[id] for id in list(documents)[:-1]})
    assert {check.name: check.outcome for check in gate(store, sides).checks}["documents"] == "fail"
    assert "documents" not in {check.name for check in gate(store, sides, behind=True).checks}


def outcomes(verdict) -> dict[str, str]:
    return {check.name.partition(":")[0]: check.outcome for check in verdict.checks}


def test_another_encoder_that_finds_as_much_passes(store, both):
    verdict = gate(store, both(Words(0), Words(1), texts(120)), tolerance=0.1)
    assert (verdict.outcome, verdict.exit_code, verdict.why) == ("pass", 0, "")
    assert verdict.compared[0].new["MRR@10"] > 0.9


def test_a_worse_encoder_of_the_same_dimension_is_refused(store, both, tmp_path):
    verdict = gate(store, both(Words(0), Words(1, forgetting=0.8), texts(120)))
    assert (verdict.outcome, verdict.exit_code) == ("fail", 6)
    assert outcomes(verdict)["ranking"] == "fail"
    assert "worse" in verdict.why
    write_report(verdict, tmp_path / "report")
    said = json.loads((tmp_path / "report/verdict.json").read_text())
    assert said["verdict"] == "fail"
    worst = said["compared"][0]["worst"]
    assert worst[0]["difference"] == min(one["difference"] for one in worst) < 0
    shown = (tmp_path / "report/report.md").read_text()
    assert "Gate: fail" in shown
    assert worst[0]["query"] in shown
    drawn = ElementTree.parse(tmp_path / "report/differences.svg").getroot()
    assert len(drawn.findall("{*}path")) == 1 + said["compared"][0]["queries"]


def test_known_items_that_lose_a_little_hold_and_judged_ones_fail(store, both, tmp_path):
    documents = texts(60)
    queries, qrels = judged(tmp_path, documents)
    sides = both(Words(0), Words(1, forgetting=0.25), documents)
    known, people = gate(store, sides), gate(store, sides, Golden(queries, qrels))
    assert -0.1 < known.compared[0].difference.high < 0
    assert (outcomes(known)["ranking"], outcomes(people)["ranking"]) == ("hold", "fail")
    assert "--qrels" in known.why


def test_vectors_of_one_encoder_asked_by_another_are_refused(store, both):
    old, new = both(Words(0), Words(0), texts(120))
    new.encoder = Words(1)  # as if what made the points had been mixed up
    assert outcomes(gate(store, (old, new)))["ranking"] == "fail"


def test_documents_of_one_id_in_two_namespaces_are_two(store, tmp_path):
    given = list(texts(120).values())
    documents = {f"{'north' if n < 60 else 'south'}/d{n % 60}": text for n, text in enumerate(given)}
    swapped = {name: documents[f"{'south' if name[0] == 'n' else 'north'}/{name[6:]}"] for name in documents}
    old = version(store, Words(0), documents, "docs", "a")
    mixed_up = version(store, Words(0), swapped, "docs@next", "b")
    assert outcomes(gate(store, (old, mixed_up)))["ranking"] == "fail"
    assert outcomes(gate(store, (old, old)))["ranking"] == "pass"
    asked = {name: text for name, text in documents.items() if name[0] == "n"}
    for plain in (False, True):  # judgements may leave the namespace out
        queries, qrels = judged(tmp_path, {name[6:] if plain else name: text for name, text in asked.items()})
        found = gate(store, (old, mixed_up), Golden(queries, qrels))
        assert outcomes(found)["ranking"] == ("pass" if plain else "fail")
        assert found.compared[0].old["nDCG@10"] > 0.9


@pytest.mark.parametrize(("mapped_by", "verdict"), [(0, "pass"), (2, "fail")])
def test_a_bridge_is_judged_by_what_searches_find(store, mapped_by, verdict):
    documents = texts(120)
    old = version(store, Words(0), documents, "docs", "a")
    mapped = {name: {"encoder_version": "a", "bridge": "a bridge"} for name in list(documents)[::2]}
    new = version(store, Words(0), documents, "docs@next", "b", compatible=["a"], **mapped)
    records, _ = store.scroll(new.physical, limit=1000)
    rows = [one for one in records if one.payload["headwater"]["encoder_version"] == "a"]
    vectors = Words(mapped_by).encode_queries([one.payload["text"] for one in rows])
    store.upsert(
        new.physical, Points([str(one.id) for one in rows], {"": vectors}, [one.payload for one in rows])
    )
    found = gate(store, (old, new))
    assert found.documents.versions == {"a": 60, "b": 60}
    assert outcomes(found)["points"] == "pass"
    assert (found.outcome, outcomes(found)["ranking"]) == (verdict, verdict)


def test_too_few_hold(store, both):
    verdict = gate(store, both(Words(0), Words(1), texts(9)))
    assert (verdict.outcome, verdict.exit_code) == ("hold", 5)
    assert "at least 20" in verdict.why


def test_an_empty_collection_holds(store, both):
    assert gate(store, both(Words(0), Words(1), {})).outcome == "hold"


def parquet(file: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def judged(folder: Path, documents: dict[str, str]) -> tuple[Path, Path]:
    ids = list(documents)
    queries = parquet(
        folder / "queries.parquet", id=ids, text=[" ".join(documents[d].split()[:6]) for d in ids]
    )
    qrels = parquet(folder / "qrels.parquet", query_id=ids, document_id=ids, relevance=[1] * len(ids))
    return queries, qrels


def test_judged_queries_are_compared_with_words_alone(store, both, tmp_path):
    documents = texts(60)
    queries, qrels = judged(tmp_path, documents)
    verdict = gate(store, both(Words(0), Words(1), documents), Golden(queries, qrels), tolerance=0.1)
    assert verdict.outcome == "pass"
    assert verdict.compared[0].words["nDCG@10"] > 0.9
    verdict = gate(store, both(Words(0), Words(1, forgetting=0.9), documents), Golden(queries, qrels))
    assert outcomes(verdict)["ranking"] == "fail"
    assert outcomes(verdict)["words"] == "hold"  # not refused for that alone


def test_queries_without_judgements_say_how_much_answers_change(store, both, tmp_path):
    documents = texts(60)
    queries, _ = judged(tmp_path, documents)
    same = gate(store, both(Words(0), Words(0), documents), Golden(queries))
    other = gate(store, both(Words(0), Words(1), documents), Golden(queries))
    assert same.overlap == 1
    assert other.overlap < 0.9
    assert not other.compared[0].judged


def test_a_slow_version_fails(store, both):
    assert outcomes(gate(store, both(Words(0), Words(1), texts(30)), max_latency_s=1e-6))["latency"] == "fail"


def test_a_graph_that_misses_neighbours_fails(store, both, monkeypatch):
    old, new = both(Words(0), Words(1), texts(60))
    find = new.find

    def lossy(vectors, limit=10, where=(), by_document=False, exact=False):
        found = find(vectors, limit, where, by_document, exact)
        return found if exact or by_document else [one[:7] for one in found]

    monkeypatch.setattr(new, "find", lossy)
    verdict = gate(store, (old, new))
    assert outcomes(verdict)["graph"] == "fail"
    assert {check.name: check.number for check in verdict.checks}["graph"] == pytest.approx(0.7)


def test_sampled_sentences_are_drawn_by_their_seed(store, both):
    old, _ = both(Words(0), Words(1), texts(80))
    first, again, other = (sample_questions(store, old.physical, "plain", 40, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first.texts) == len(other.texts) == 40
    assert all(len(text.split()) >= 4 for text in first.texts.values())
    assert len({id.partition("#")[0] for id in first.texts}) == 40  # of as many chunks
    everything = sample_questions(store, old.physical, "plain", 1000, 3)
    assert len(everything.texts) == len(set(everything.texts.values())) == 160  # each sentence once


def test_judgements_of_other_queries_are_said(tmp_path):
    queries = parquet(tmp_path / "q.parquet", id=["a"], text=["b"])
    qrels = parquet(tmp_path / "r.parquet", query_id=["x"], document_id=["y"], relevance=[1])
    with pytest.raises(UsageError, match="no query of"):
        read_questions(queries, qrels)


def test_words_rank_what_shares_them():
    found = rank_by_words(
        ["a river bends", "stones", "river and stone"], ["x", "y", "x"], ["river", "zebra", "of"], 5
    )
    assert found == [["x"], [], []]
    assert rank_by_words([], [], ["river"], 5) == [[]]


# --- the command


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory, tiny_model, other_model, encoder_cache) -> tuple[str, str]:
    """A store with `docs` and, by an encoder that has moved since, `docs@next`; where that is now."""
    folder = tmp_path_factory.mktemp("upgraded")
    documents = texts(60)
    source = parquet(folder / "docs.parquet", id=list(documents), text=list(documents.values()))
    model = shutil.copytree(other_model, folder / "model")
    old, new = (runs.settings(one, encoder_cache, f"edge:{folder}/store") for one in (tiny_model, model))
    runs.run(source, old)
    upgrades.upgrade(new)
    return f"edge:{folder}/store", str(shutil.move(model, folder / "moved"))


def test_the_command_says_pass_hold_or_fail_by_its_exit_code(upgraded, encoder_cache, tmp_path):
    where, moved = upgraded
    asked = ("versions", "gate", "--store", where, "--collection", "docs", "--json")
    done = runs.inside(*asked, cache=encoder_cache)
    assert (done.returncode, "--encoder" in done.stderr) == (1, True)
    asked = (*asked, "--encoder", moved)
    done = runs.inside(*asked, "--report", tmp_path / "report", cache=encoder_cache)
    said = runs.lines(done.stdout)[0]
    assert done.returncode == {"pass": 0, "hold": 5, "fail": 6}[said["verdict"]]
    assert said == json.loads((tmp_path / "report/verdict.json").read_text())
    assert said["documents"]["documents"] == 60
    assert {one["name"] for one in said["checks"]} >= {"documents", "points", "graph", "latency"}
    done = runs.inside(*asked, "--set", "gate.least=1000", cache=encoder_cache)
    assert (done.returncode, runs.lines(done.stdout)[0]["verdict"]) == (5, "hold")
    done = runs.inside(*asked, "--set", "gate.max_latency_s=1e-9", cache=encoder_cache)
    assert done.returncode == 6


def test_the_command_needs_a_version_to_judge_and_queries_for_judgements(upgraded, encoder_cache, tmp_path):
    asked = ("versions", "gate", "--store", upgraded[0], "--collection", "docs")
    done = runs.inside(*asked, "--qrels", tmp_path / "qrels.parquet", cache=encoder_cache)
    assert (done.returncode, "--queries" in done.stderr) == (2, True)
    done = runs.inside(*asked[:-1], "nothing", cache=encoder_cache)
    assert (done.returncode, "no collection 'nothing'" in done.stderr) == (1, True)


def test_the_drift_between_two_versions_and_from_an_earlier_sample(upgraded, encoder_cache, tmp_path):
    asked = ("versions", "drift", "--store", upgraded[0], "--collection", "docs", "--json")
    done = runs.inside(*asked, "--save", tmp_path / "drift.npz", cache=encoder_cache)
    between = runs.lines(done.stdout)[0]
    assert (between["before"]["name"], between["after"]["name"]) == ("docs", "docs@next")
    assert between["shared_points"] == between["before"]["points"] == 60
    assert between["mean_shift"] > 0.1
    done = runs.inside(*asked, "--against", str(tmp_path / "drift.npz"), cache=encoder_cache)
    since = runs.lines(done.stdout)[0]
    assert (since["mean_shift"], since["neighbour_overlap@10"], since["cosine_of_shared_points"]) == (0, 1, 1)
    done = runs.inside(*asked, "--against", str(tmp_path / "other.npz"), cache=encoder_cache)
    assert (done.returncode, "cannot be read" in done.stderr) == (2, True)
    done = runs.inside(*asked[:-3], "--collection", "docs@next", cache=encoder_cache)
    assert (done.returncode, "--against" in done.stderr) == (2, True)
