import json
import subprocess
import sys
import time
from dataclasses import replace

import psutil

from pipeline.owner import Owner


def test_a_living_process_is_not_gone():
    assert not Owner.here().gone()


def test_a_process_that_ended_is_gone_also_before_it_is_reaped():
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import json; from pipeline.owner import Owner; print(json.dumps(Owner.here().as_dict())); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    owner = Owner.read(json.loads(child.stdout.readline()))
    assert owner.pid == child.pid
    assert not owner.gone()
    child.kill()
    deadline = time.monotonic() + 10
    while not owner.gone():
        assert time.monotonic() < deadline
    child.wait()
    assert owner.gone()


def test_a_number_given_to_another_process_does_not_keep_the_first_one_alive():
    assert replace(Owner.here(), started=Owner.here().started - 100).gone()


def test_of_another_machine_nothing_is_certain():
    owner = replace(Owner.here(), machine="another", pid=2**22)
    assert not owner.near
    assert not owner.gone()


def test_what_is_no_owner_reads_as_none():
    assert Owner.read(None) is None
    assert Owner.read({"pid": 1}) is None
    assert Owner.read(Owner.here().as_dict()) == Owner.here()


def test_a_process_that_we_are_not_shown_is_not_gone(monkeypatch):
    def hidden(pid):
        raise psutil.NoSuchProcess(pid)

    here = Owner.here()
    monkeypatch.setattr(psutil, "Process", hidden)
    assert not here.gone()
    assert replace(here, pid=2**22 - 1).gone()


def test_a_clock_that_was_set_does_not_make_a_living_process_another(monkeypatch):
    here = Owner.here()
    boot, created = psutil.boot_time(), psutil.Process().create_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + 3600)
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: created + 3600)
    assert not here.gone()
