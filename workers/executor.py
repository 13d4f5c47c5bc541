"""The Ray executor: hands the work of a run to lanes on a cluster.

The driver sees splits and trailers only, so one driver feeds any number of GPUs.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import replace

import ray

from pipeline import metrics
from pipeline.config import Settings, StoreConfig
from pipeline.job import Job
from pipeline.schemas import Split, SplitAck
from pipeline.stores import Purpose, Store, folder_of, open_store
from pipeline.work import Work
from workers.actors import Place
from workers.cluster import connect, nodes, share, with_threads
from workers.metrics import RaySink
from workers.pool import Done, Failed, Lost, Pool
from workers.store import StoreProcess, open_remote


class RayExecutor:
    """Runs splits on lanes that are Ray actors, one per GPU, or one per share of the CPUs.

    A lane's death loses nothing: what it held is run again, to the same points. A split that kills lanes is halved
    until the documents that do it are found and rejected. Lanes that die one after another and nothing comes of it end
    the run. See `Work`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connected = False
        self._store: StoreProcess | None = None
        self._server: Store | None = None
        self._pool: Pool | None = None

    def open_store(self, config: StoreConfig, purpose: Purpose | None = None) -> Store:
        """A server is opened by every lane for itself; a folder is held by one actor that all feed."""
        self._connected = connect()
        metrics.send_to(RaySink(config.collection))
        if folder_of(config.url):
            self._store = open_remote(config, purpose)
            return self._store.store
        self._server = open_store(config, purpose)
        return self._server

    def run(
        self, job: Job, splits: Sequence[Split], stop: threading.Event
    ) -> Generator[tuple[Split, SplitAck]]:
        """Run splits on lanes; see `ingest.Executor`."""
        parts = share(self._settings, nodes())
        parts = replace(parts, lanes=min(parts.lanes, len(splits)))
        job = replace(job, settings=with_threads(job.settings, parts.threads))
        work = Work(splits, self._settings.run.split_attempts, parts.lanes)
        store = self._store.store if self._store else None
        self._pool = pool = Pool(job, store, parts, self._settings.run.split_deadline_s)
        try:
            yield from self._drive(work, pool, stop)
        finally:
            pool.kill()  # now, not in close(): whoever lets go of the lease must have no lane that writes

    def _drive(self, work: Work, pool: Pool, stop: threading.Event) -> Generator[tuple[Split, SplitAck]]:
        """Hand out splits and yield their trailers until nothing is left to do."""
        told = False
        while work or pool.busy:
            if stop.is_set():
                yield from work.clear()
                if not told:
                    pool.stop()
                told = True
            pool.hand_out(work.take)
            for outcome in pool.collect():
                match outcome:
                    case Done(split, ack):
                        yield from work.done(split, ack)
                    case Failed(split, error):
                        work.failed(split, error)
                    case Lost(held, why, machine):
                        yield from work.lost(held, why, machine)

    def progress(self) -> int:
        """Documents done so far in the splits that are running now; the last known number where a lane is busy."""
        return self._pool.progress() if self._pool else 0

    def places(self) -> list[Place]:
        """Where the lanes run that are ready."""
        return self._pool.places() if self._pool else []

    def store_process(self) -> int | None:
        """The process that holds the store's folder, if it has one."""
        return self._store.process_id() if self._store else None

    def close(self) -> None:
        """Kill the lanes, and leave the Ray that this run joined, or end the one it started."""
        if self._pool:
            self._pool.kill()
        if self._store:
            self._store.close()
        if self._server:
            self._server.close()
        metrics.send_to(None)
        if self._connected:
            ray.shutdown()
        self._pool = self._store = None
