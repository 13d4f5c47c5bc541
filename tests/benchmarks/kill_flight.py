"""A Flight endpoint for the kill matrix, and a client that sends again what was not acknowledged."""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.flight as flight
from kill_sources import COMMAND, CREDITS, flags
from killing import PATIENCE_S, SPLIT, Ground, Run, version

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster import free_port
from waiting import wait_for


def batches(number: int) -> list[pa.RecordBatch]:
    """A version of the source, with a row that deletes for each document that it lacks."""
    kept = {row["id"]: row for row in version(number)}
    whole = {row["id"]: row for other in range(3) for row in version(other)}
    rows = [
        {**kept[id], "operation": "upsert"} if id in kept else {"id": id, "text": "", "operation": "delete"}
        for id in whole
    ]
    schema = pa.Table.from_pylist([row for row in rows if row["operation"] == "upsert"]).schema
    return pa.Table.from_pylist(rows, schema=schema).to_batches(max_chunksize=SPLIT)


class Client:
    """Puts batches one after the other, with at most CREDITS of them not acknowledged."""

    def __init__(self, stream: FlightStream, number: int) -> None:
        self._stream = stream
        self._batches = batches(number)
        self._generation = 0
        self.acknowledged = 0
        self.sent: Counter[int] = Counter()
        self.go_on()

    @property
    def done(self) -> bool:
        """Whether everything is acknowledged."""
        return self.acknowledged == len(self._batches)

    @property
    def share(self) -> float:
        """How much of it."""
        return self.acknowledged / len(self._batches)

    def go_on(self) -> None:
        """Give up the put that goes on, if any does, and put the rest to whoever listens now."""
        self._generation += 1
        threading.Thread(target=self._feed, args=(self._generation,), daemon=True).start()

    def _feed(self, generation: int) -> None:
        while not self.done and generation == self._generation:
            try:
                self._put(generation)
            except (pa.ArrowException, OSError):  # it died, or has another as its successor
                time.sleep(0.2)

    def _put(self, generation: int) -> None:
        client = flight.connect(f"grpc://127.0.0.1:{self._stream.port()}")
        descriptor = flight.FlightDescriptor.for_path("kill-matrix")
        writer, reader = client.do_put(descriptor, self._batches[0].schema)
        first = following = self.acknowledged
        while generation == self._generation and not self.done:
            while following < min(len(self._batches), self.acknowledged + CREDITS):
                writer.write_batch(self._batches[following])
                self.sent[following] += 1
                following += 1
            said = reader.read()
            if generation != self._generation:
                return
            if said is None:
                raise OSError("the put was ended")
            self.acknowledged = first + json.loads(said.to_pybytes())["batches"]
        writer.close()


class FlightStream:
    """`headwater watch grpc://…`, and a client of it."""

    def __init__(self, ground: Ground, store: str, folder: Path) -> None:
        self.folder = folder
        self._flags = flags(ground, store, folder)
        self._runs: list[Run] = []
        self._ports: list[int] = []
        self._clients: dict[int, Client] = {}

    def start(self, number: int, killable: bool = False) -> Run:
        """Listen, and have a version put if nobody puts it yet."""
        self._ports.append(free_port())
        words = ["watch", f"grpc://127.0.0.1:{self._ports[-1]}", *self._flags, "--max-latency", "100ms"]
        command = [*COMMAND, *words, "--set", "source.operation=operation"]
        self._runs.append(Run.start(command, self.folder, {}))
        self._client(number)
        return self._runs[-1]

    def port(self) -> int:
        """Where the last one listens that does and has not ended."""
        found = [port for run, port in zip(self._runs, self._ports, strict=True) if listens(run)]
        if not found:
            raise OSError("nobody listens")
        return found[-1]

    def amid(self, run: Run, chance: random.Random) -> None:
        """Return at a random moment while batches are being put."""
        at = chance.uniform(0.05, 0.75)
        wait_for(lambda: self._clients[1].share >= at or run.over, "nothing was acknowledged")
        time.sleep(chance.random() * 0.2)
        if run.over or self._clients[1].done:
            raise RuntimeError(f"it was done before anything could be killed: {run.said()}")

    def finish(self, run: Run, number: int) -> list[int]:
        """Wait until all of a version is acknowledged, listening again if nobody does; then drain."""
        codes, deadline = [], time.monotonic() + PATIENCE_S
        while not self._client(number).done:
            if run.over:
                codes.append(run.wait()["exit_code"])
                run = self.start(number)
            if time.monotonic() > deadline:
                raise RuntimeError(f"not acknowledged, {codes}: {run.said()}")
            time.sleep(0.05)
        run.process.send_signal(signal.SIGTERM)
        return [*codes, run.wait()["exit_code"]]

    def refused(self, run: Run) -> bool:
        """Whether this run was told that another one has the store; else clients turn to it now."""
        wait_for(lambda: run.over or listens(run), "neither refused nor listening")
        if not run.over:
            for client in self._clients.values():
                client.go_on()
        return run.over

    def read(self) -> Counter[str]:
        """How often each batch of version 1 was sent."""
        return Counter({str(batch): times for batch, times in self._clients[1].sent.items()})

    def sink(self) -> list[psutil.Process]:
        """No process of its own."""
        return []

    def _client(self, number: int) -> Client:
        if number not in self._clients:
            self._clients[number] = Client(self, number)
        return self._clients[number]


def listens(run: Run) -> bool:
    """Whether it does."""
    return not run.over and '"flight_listening"' in run.err.read_text()
