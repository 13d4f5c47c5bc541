"""Who holds a folder makes way for the one who replaces it, dead or frozen, and for nobody else."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from pipeline.errors import StoreHeld
from pipeline.owner import Owner
from pipeline.stores.folder_lock import LOCK, Claim, FolderLock, Holder, Purpose, Seat

HERE = Owner.here()
GONE = replace(HERE, pid=2**22 - 1)
HOLDER = """
import sys
from pathlib import Path
from pipeline.owner import Owner
from pipeline.stores.folder_lock import Claim, FolderLock, Holder
lock = FolderLock.take(Path(sys.argv[1]), Holder.read(sys.stdin.readline().encode()).claim)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold(tmp_path):
    """A function that starts a process which holds the folder by a claim."""
    started = []

    def hold(claim):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(process)
        process.stdin.write(Holder(HERE, claim).as_json() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("why", ["the same seat", "nobody to sit there for"])
def test_a_replaced_holder_is_killed_first_also_when_it_is_frozen(why, frozen, hold, tmp_path):
    seat = Seat("a", HERE if why == "the same seat" else GONE)
    process = hold(Claim(Purpose.INGEST, "docs", seat))
    if frozen:
        process.send_signal(signal.SIGSTOP)
    ours = Claim(Purpose.INGEST, "docs", Seat("a" if why == "the same seat" else "b", HERE))
    lock = FolderLock.take(tmp_path, ours)
    assert process.wait(10) == -signal.SIGKILL
    assert Holder.read((tmp_path / LOCK).read_bytes()) == Holder(HERE, ours)
    lock.release()


@pytest.mark.parametrize("seat", [None, Seat("other", HERE)], ids=["none", "another"])
def test_whoever_sits_elsewhere_or_nowhere_is_left_alone(seat, hold, tmp_path):
    process = hold(Claim(Purpose.SEARCH, "docs", seat))
    with pytest.raises(StoreHeld) as refused:
        FolderLock.take(tmp_path, Claim(Purpose.INGEST, "docs", Seat("mine", HERE)))
    assert f"process {process.pid} on {os.uname().nodename} (search in 'docs')" in refused.value.got
    assert (refused.value.purpose, refused.value.collection) == (Purpose.SEARCH, "docs")
    assert process.poll() is None


def test_a_holder_on_another_machine_is_left_alone(hold, tmp_path):
    process = hold(Claim(Purpose.INGEST, "docs", Seat("mine", HERE)))
    there = Holder(replace(HERE, pid=process.pid, machine="another"), Claim(seat=Seat("mine", HERE)))
    (tmp_path / LOCK).write_bytes(there.as_json())
    with pytest.raises(StoreHeld):
        FolderLock.take(tmp_path, Claim(seat=Seat("mine", HERE)))
    assert process.poll() is None


def test_a_number_given_to_another_process_is_not_killed():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert replace(HERE, pid=process.pid, started=HERE.started - 3600).kill()  # gone, and not by us
    assert process.poll() is None
    process.communicate(b"\n")


def test_what_is_written_is_read_and_anything_else_is_nobody():
    for claim in (Claim(), Claim(Purpose.AUDIT, "häuser"), Claim(Purpose.INGEST, "docs", Seat("x", GONE))):
        assert Holder.read(Holder(HERE, claim).as_json()) == Holder(HERE, claim)
    torn = Holder(HERE, Claim()).as_json()[:-5]
    for text in (b"", b"{}", torn, b"\xff", b"[1]", json.dumps({"owner": 3}).encode()):
        assert Holder.read(text) is None
