import json
import re
from dataclasses import replace

import pytest

from pipeline.owner import Owner
from pipeline.schemas import Counts, Split, SplitAck
from pipeline.sync import Header, Ledger, now, runs


def begin(folder, run, owner=None, monkeypatch=None):
    header = Header(run, "plan", "docs.parquet", "docs", "v1", 3, 9, now())
    if owner is None:
        return Ledger.open(folder, header, "")
    with monkeypatch.context() as patch:
        patch.setattr(Owner, "here", classmethod(lambda cls: owner))
        return Ledger.open(folder, header, "")


def commit(ledger, name):
    ledger.commit([(Split(name, "u", "parquet", 0, 1, 0, 3), SplitAck(name, Counts(read=3, indexed=3)))])


def ended(ledger, exit_code, interrupted=False):
    ledger.end({"exit_code": exit_code, "interrupted": interrupted})


def test_a_run_that_goes_on_shows_what_it_has_committed(tmp_path):
    ledger = begin(tmp_path, "a")
    commit(ledger, "one")
    commit(ledger, "two")
    (run,) = runs([tmp_path])
    assert (run.state, run.splits_done, run.attempts) == ("running", 2, 1)
    assert run.committed == Counts(read=6, indexed=6)
    assert run.header.documents == 9
    json.dumps(run.as_dict())


@pytest.mark.parametrize(
    ("exit_code", "interrupted", "state"),
    [(0, False, "finished"), (3, False, "finished"), (1, False, "failed"), (130, True, "interrupted")],
)
def test_an_ended_run_shows_how(tmp_path, exit_code, interrupted, state):
    ended(begin(tmp_path, "a"), exit_code, interrupted)
    (run,) = runs([tmp_path])
    assert run.state == state
    assert run.summary["exit_code"] == exit_code


def test_a_run_whose_process_is_gone_is_lost_and_resumed_is_running(tmp_path, monkeypatch):
    begin(tmp_path, "a", replace(Owner.here(), pid=2**22 - 1), monkeypatch)
    assert runs([tmp_path])[0].state == "lost"
    Ledger.open(tmp_path, Header("a", "plan", "docs.parquet", "docs", "v1", 3, 9, now()), "a")
    (run,) = runs([tmp_path])
    assert (run.state, run.attempts) == ("running", 2)


def test_of_a_run_on_another_machine_only_the_last_word_is_known(tmp_path, monkeypatch):
    begin(tmp_path, "a", replace(Owner.here(), machine="another", host="far"), monkeypatch)
    (run,) = runs([tmp_path])
    assert run.state == "elsewhere"
    assert "far" in run.process


def test_the_latest_run_comes_first_and_a_torn_ledger_is_read_as_far_as_it_goes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    older = begin(tmp_path / "a", "older")
    past = re.sub(rb'"(at|began)":"20', rb'"\1":"19', older.file.read_bytes())
    older.file.write_bytes(past + b'{"split": "x", "cou')
    begin(tmp_path / "b", "newer")
    (tmp_path / "b" / "run-empty.jsonl").write_bytes(b"")
    assert [run.header.run for run in runs([tmp_path / "a", tmp_path / "b"])] == ["newer", "older"]


def test_files_that_are_no_ledgers_do_not_hide_the_runs(tmp_path):
    begin(tmp_path, "good")
    (tmp_path / "run-folder.jsonl").mkdir()
    for name, text in {
        "older": '{"plan": "x", "run": "older"}',
        "bytes": "\udcff\udcfe",
        "list": "[1]",
        "counts": None,
        "ended": '{"ended": 3}',
    }.items():
        header = begin(tmp_path, name).file.read_text().splitlines()[0]
        damaged = {"counts": f'{header}\n{{"split": "x", "counts": 3}}', "ended": f"{header}\n{text}"}.get(
            name, text
        )
        (tmp_path / f"run-{name}.jsonl").write_bytes(f"{damaged}\n".encode("utf-8", "surrogateescape"))
    assert [run.header.run for run in runs([tmp_path])] == ["good"]


def test_a_split_that_two_processes_committed_counts_once(tmp_path):
    ledger = begin(tmp_path, "a")
    commit(ledger, "one")
    commit(ledger, "one")
    (run,) = runs([tmp_path])
    assert (run.splits_done, run.committed.read) == (1, 3)


def test_an_error_that_ended_a_run_is_told_until_the_next_attempt(tmp_path):
    begin(tmp_path, "a").fail("the store is gone")
    (run,) = runs([tmp_path])
    assert (run.state, run.error, run.summary) == ("failed", "the store is gone", None)
    assert run.as_dict()["error"] == "the store is gone"
    again = Ledger.open(tmp_path, Header("a", "plan", "docs.parquet", "docs", "v1", 3, 9, now()), "a")
    (run,) = runs([tmp_path])
    assert (run.state, run.error, run.attempts) == ("running", "", 2)
    ended(again, 0)
    assert runs([tmp_path])[0].state == "finished"
