"""Judged tasks of public benchmarks, answered by two encoders and by words."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
from documents import texts

from pipeline.config import EncoderConfig, Settings
from pipeline.errors import UsageError
from pipeline.upgrade.tasks import MTEB, answer_task, of_mteb, open_task


def beir(folder: Path) -> Path:
    documents = texts(24)
    (folder / "qrels").mkdir(parents=True)
    rows = [json.dumps({"_id": d, "title": "", "text": text}) for d, text in documents.items()]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    queries = {f"q{d}": text.split(". ")[0] for d, text in documents.items()}
    (folder / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": q, "text": text}) for q, text in queries.items())
    )
    pairs = "".join(f"q{d}\t{d}\t1\n" for d in documents)
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + pairs)
    return folder


def test_a_task_is_answered_by_both_encoders_and_by_words(tmp_path, tiny_model, other_model, encoder_cache):
    task = open_task(str(beir(tmp_path / "task")))
    old, new = (EncoderConfig(model=str(one), cache=str(encoder_cache)) for one in (tiny_model, other_model))
    found = answer_task(task, Settings(), old, new, lambda _: None)
    assert len(found.questions.texts) == len(found.old) == len(found.new) == 24
    assert all(len(documents) == 10 for documents in found.new.values())
    assert [found.words[f"q{d}"][0] for d in texts(24)] == list(texts(24))
    assert found.old != found.new
    assert found.questions.source == task.name


def test_a_task_of_mteb_is_read_as_it_lies_there(tmp_path):
    folder = open_task(str(beir(tmp_path)))
    data = {
        "corpus": [{"id": d, "title": title, "text": text} for d, title, text in folder.documents],
        "queries": [{"id": id, "text": text} for id, text in folder.queries.items()],
        "relevant_docs": folder.qrels,
        "top_ranked": None,
    }
    task = types.SimpleNamespace(
        load_data=lambda: None,
        convert_v1_dataset_format_to_v2=lambda num_proc: None,
        dataset={"default": {"test": data}},
    )
    assert of_mteb(task, folder.name) == folder


def test_what_is_no_task_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"corpus\.jsonl"):
        open_task(str(tmp_path))
    with pytest.raises(UsageError, match="mteb is not installed"):
        open_task(MTEB + "NFCorpus")
