import json

import pyarrow.parquet as pq
import pytest

from pipeline.errors import StoreError, UsageError
from pipeline.schemas import Counts, Rejected, Split, SplitAck
from pipeline.sync import Header, Ledger, now, write_rejected
from pipeline.sync.ledger import KEPT


def header(plan="plan", run=""):
    return Header(run, plan, "docs.parquet", "docs", "v1", 3, 9, now())


def reopen(folder):
    """Open the ledger of "plan" on a collection that nobody else has written to."""
    files = sorted(folder.glob("run-*.jsonl"), key=lambda file: file.stat().st_mtime_ns)
    last_run = files[-1].stem.removeprefix("run-") if files else ""
    return Ledger.open(folder, header(), last_run)


def split(name: str, superseded: tuple[int, ...] = ()) -> Split:
    return Split(name, f"{name}.parquet", "parquet", 0, 1, 0, 3, superseded)


def ack(name: str, read: int = 3) -> SplitAck:
    lost = Rejected("a\ud800b" if name == "odd" else "a", "u", 1, "source", "empty_text", "no text")
    return SplitAck(name, Counts(read=read, indexed=read - 1, rejected=1), (lost,))


def summary(ledger, exit_code=0, interrupted=False):
    return {"exit_code": exit_code, "interrupted": interrupted, "run": ledger.run_id}


def test_an_unfinished_run_is_resumed_with_its_counts_and_rejections(tmp_path):
    ledger = reopen(tmp_path)
    ledger.commit([(split("a"), ack("a")), (split("b"), ack("b", 5))])
    again = reopen(tmp_path)
    assert again.run_id == ledger.run_id
    assert split("a") in again
    assert split("c") not in again
    both = [split("a"), split("b"), split("c")]
    assert again.counts(both) == Counts(read=8, indexed=6, rejected=2)
    assert [r.reason for r in again.rejected(both)] == ["empty_text", "empty_text"]
    again.commit([(split("c"), ack("c"))])
    assert reopen(tmp_path).counts(both).read == 11


def test_a_finished_run_is_never_a_reason_to_skip_work(tmp_path):
    ledger = reopen(tmp_path)
    ledger.commit([(split("a"), ack("a"))])
    ledger.end(summary(ledger))
    again = reopen(tmp_path)
    assert again.run_id != ledger.run_id
    assert split("a") not in again


@pytest.mark.parametrize(("exit_code", "interrupted"), [(1, False), (130, True)])
def test_a_run_that_ended_before_it_was_done_is_resumed(tmp_path, exit_code, interrupted):
    ledger = reopen(tmp_path)
    ledger.commit([(split("a"), ack("a"))])
    ledger.end(summary(ledger, exit_code, interrupted))
    again = reopen(tmp_path)
    assert again.run_id == ledger.run_id
    assert split("a") in again


@pytest.mark.parametrize("exit_code", [0, 3])
def test_a_named_run_that_is_finished_stays_finished_whoever_wrote_since(tmp_path, exit_code):
    ledger = Ledger.open(tmp_path, header(run="nightly"), "")
    ledger.end(summary(ledger, exit_code))
    reopen(tmp_path)
    again = Ledger.open(tmp_path, header(run="nightly"), "another run")
    assert again.finished is not None
    assert again.finished[0] == summary(ledger, exit_code)


def test_a_named_run_is_resumed_and_after_another_one_wrote_begins_anew(tmp_path):
    ledger = Ledger.open(tmp_path, header(run="nightly"), "")
    ledger.commit([(split("a"), ack("a"))])
    assert split("a") in Ledger.open(tmp_path, header(run="nightly"), "nightly")
    assert split("a") not in Ledger.open(tmp_path, header(run="nightly"), "another run")


def test_a_name_is_not_given_to_two_plans(tmp_path):
    Ledger.open(tmp_path, header(run="nightly"), "")
    with pytest.raises(UsageError, match="nightly"):
        Ledger.open(tmp_path, header("other plan", run="nightly"), "nightly")


def test_only_the_latest_ledgers_are_kept_and_their_lists_of_rejected_documents(tmp_path):
    for n in range(KEPT + 5):
        write_rejected(Ledger.open(tmp_path, header(f"plan {n}"), "").dead_letter, ack("a").rejected)
    kept = {file.stem.removeprefix("run-") for file in tmp_path.glob("run-*.jsonl")}
    assert len(kept) == KEPT
    assert {file.stem.removeprefix("rejected-") for file in tmp_path.glob("*.parquet")} == kept


def test_a_run_that_an_error_ended_is_resumed(tmp_path):
    ledger = reopen(tmp_path)
    ledger.commit([(split("a"), ack("a"))])
    ledger.fail("the store is gone")
    assert len(reopen(tmp_path)) == 1


def test_another_plan_forgets_what_the_last_one_did(tmp_path):
    ledger = reopen(tmp_path)
    ledger.commit([(split("a"), ack("a"))])
    other = Ledger.open(tmp_path, header("other plan"), ledger.run_id)
    assert split("a") not in other
    assert split("a") not in Ledger.open(tmp_path, header(), other.run_id)


def test_a_run_is_not_resumed_over_what_another_one_wrote(tmp_path):
    ledger = reopen(tmp_path)
    ledger.commit([(split("a"), ack("a"))])
    assert split("a") not in Ledger.open(tmp_path, header(), "another run")


def test_a_split_whose_losing_rows_changed_is_another_split(tmp_path):
    ledger = reopen(tmp_path)
    ledger.commit([(split("a"), ack("a"))])
    assert split("a", superseded=(1,)) not in ledger


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_tail_is_dropped_and_written_over(tmp_path, cut):
    ledger = reopen(tmp_path)
    ledger.commit([(split("a"), ack("a"))])
    ledger.commit([(split("b"), ack("b"))])
    ledger.file.write_bytes(ledger.file.read_bytes()[:-cut])
    again = reopen(tmp_path)
    assert split("a") in again
    assert split("b") not in again
    again.commit([(split("b"), ack("b"))])
    lines = again.file.read_bytes().splitlines()
    assert [name for line in lines if (name := json.loads(line).get("split"))] == ["a", "b"]


def test_a_ledger_whose_header_is_torn_begins_anew(tmp_path):
    ledger = reopen(tmp_path)
    ledger.file.write_bytes(b'{"run": "x", "pl')
    assert len(reopen(tmp_path)) == 0


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        Ledger.open(tmp_path / "file" / "state", header(), "")


def test_dead_letters_hold_every_rejected_document(tmp_path):
    rows = [
        Rejected(None if n % 7 == 0 else str(n), "u", n, "source", "null_id", "no id") for n in range(25_000)
    ]
    file = tmp_path / "rejected.parquet"
    assert write_rejected(file, iter(rows)) == 25_000
    assert [vars(r) for r in rows] == pq.read_table(file).to_pylist()


def test_without_rejections_there_is_no_dead_letter_file(tmp_path):
    assert write_rejected(tmp_path / "rejected.parquet", []) == 0
    assert list(tmp_path.iterdir()) == []
