"""Real Ray clusters of several machines on this one, as `ray start` makes them."""

import os
import socket
import subprocess
import sys
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path

import psutil
from waiting import wait_for


class Machine:
    """One machine of a cluster: what `ray start` starts, with ports of its own and no way out."""

    def __init__(self, folder, *arguments, cpus=2):
        self.mark = uuid.uuid4().hex
        self.log = folder / f"{self.mark}.log"
        agent = ["--dashboard-agent-listen-port", free_port(), "--dashboard-agent-grpc-port", free_port()]
        command = [sys.executable, "-c", RAY, "start", "--block", "--num-cpus", cpus, *agent, *arguments]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env=os.environ | {"HW_TEST_MARK": self.mark},
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: "--block" in self.log.read_text() or self.process.poll())
        assert self.process.poll() is None, self.log.read_text()

    def kill(self):
        """End all of it at once, as a power cut would."""
        for process in processes(self.mark):
            with suppress(psutil.Error):
                process.kill()
        self.process.wait()


RAY = "from ray.scripts.scripts import main; main()"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Head(Machine):
    """A running Ray that takes jobs, too."""

    def __init__(self, folder, cpus=2):
        self.address = f"127.0.0.1:{free_port()}"
        self.dashboard = free_port()
        self.metrics = free_port()
        port = self.address.partition(":")[2]
        ports = ["--dashboard-port", self.dashboard, "--metrics-export-port", self.metrics]
        super().__init__(folder, "--head", "--port", port, *ports, cpus=cpus)

    def page(self):
        """What Prometheus would read of this machine."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=10) as page:
            return page.read().decode()


def processes(mark):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HW_TEST_MARK") == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


def ingest_arguments(source, model, cache, store, state):
    """`headwater ingest` on two lanes of a Ray, committing every split."""
    return [
        "ingest", source, "--encoder", model, "--store", store, "--collection", "docs", "--json",
        "--executor", "ray", "--set", "run.lanes=2", "--set", "chunking.max_tokens=48",
        "--set", "run.commit_every_s=0", "--set", "encoder.provider=cpu", "--set", f"run.state={state}",
        "--set", f"encoder.cache={cache}",
    ]  # fmt: skip


def commits(state):
    return sum(ledger.read_bytes().count(b'"split":') for ledger in Path(state).glob("*/*.jsonl"))


def wait_for_commits(process, state, more_than=2):
    """Wait until some splits are committed; the run must still be going on then."""
    try:
        wait_for(lambda: commits(state) > more_than or process.poll() is not None)
        assert process.poll() is None
    except (AssertionError, TimeoutError):
        process.kill()
        raise AssertionError(process.communicate()) from None


def lanes(processes):
    return [process for process in processes if "LaneActor" in " ".join(process.cmdline())]
