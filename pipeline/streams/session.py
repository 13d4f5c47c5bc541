"""A run without an end: what it holds for as long as it lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from pipeline import logs, metrics
from pipeline.config import Settings
from pipeline.encoders import describe, describe_aspects, prepare_encoder
from pipeline.errors import LeaseLost, UsageError
from pipeline.ingest import RUN_KEY, Executor, hold_collection, state_folder
from pipeline.job import Job, check_target, make_chunker, open_job
from pipeline.schemas import Counts, Split, SplitAck, Unreadable
from pipeline.stores import Store, collection
from pipeline.summary import Summary
from pipeline.sync import Header, Journal, now, plan_hash

log = logs.logger(__name__)


class Session:
    """A collection held for writing, with one lane whose encoder stays loaded; for one thread at a time.

    `plan` is the same for the same source, settings, encoder and collection; `folder` is where this machine remembers
    the collection's runs.
    """

    def __init__(
        self, source: str, job: Job, store: Store, executor: Executor, stop: threading.Event
    ) -> None:
        self.job = job
        self.store = store
        self.stop = stop
        self.folder = state_folder(job.settings) / job.collection
        config = job.settings.source.model_dump(mode="json", exclude={"max_deletes", "snapshot"})
        self.plan = plan_hash("watch", source, config, job.chunker_version, job.spec.version, job.collection)
        self.counts = Counts()
        self.watermark = ""
        self._source = logs.redacted(source)
        self._executor = executor
        self._journal: Journal | None = None
        self._began = time.perf_counter()

    def last_run(self) -> str:
        """The run that wrote to the collection last."""
        return str(collection.read_metadata(self.store, self.job.collection).get(RUN_KEY, ""))

    def begin(self, run: str) -> None:
        """Be this run from now on, and write in the collection's metadata that it writes to it."""
        self.job = replace(self.job, run=run)
        logs.set_run(run)
        header = Header(
            run=run,
            plan=self.plan,
            source=self._source,
            collection=self.job.settings.store.collection,
            encoder_version=self.job.spec.version,
            splits=0,
            documents=None,
            began=now(),
            store=logs.redacted(self.job.settings.store.url),
        )
        self._journal = Journal(self.folder, header)
        if self.last_run() != run:
            self.store.update_collection(self.job.collection, metadata={RUN_KEY: run})
        log.info("watch_started", source=self._source)

    @property
    def journal(self) -> Journal:
        """What `headwater status` is told; there is one once the session has begun."""
        assert self._journal is not None
        return self._journal

    def run(
        self, splits: Sequence[Split], stop: threading.Event | None = None
    ) -> Iterator[tuple[Split, SplitAck]]:
        """Run splits on the lane; see `Executor.run`. They are ended early by `stop`, by default the session's."""
        with closing(self._executor.run(self.job, splits, stop or self.stop)) as trailers:
            yield from trailers

    def add(self, ack: SplitAck) -> None:
        """Count what a split did."""
        self.counts += ack.counts
        metrics.record_trailer(ack)

    def add_removed(self, gone: Counts) -> None:
        """Count what was removed because the source no longer has it."""
        self.counts += gone
        metrics.record_counts(gone)

    def tell(self, until: float) -> None:
        """Say that everything up to then (seconds since 1970; 0: nothing) is searchable."""
        if until:
            metrics.record(metrics.WATERMARK, until)
            self.watermark = datetime.fromtimestamp(until, UTC).isoformat(timespec="milliseconds")
        self.journal.tell(self.counts, self.watermark)

    def end(
        self, failed: Sequence[Unreadable] = (), refused: str = "", *, interrupted: bool = False
    ) -> Summary:
        """Say how it ended."""
        summary = Summary(
            counts=self.counts,
            earlier=Counts(),
            seconds=time.perf_counter() - self._began,
            run=self.job.run,
            collection=self.job.collection,
            encoder_version=self.job.spec.version,
            resumed_splits=0,
            failed=tuple(failed),
            interrupted=interrupted,
            dead_letter=self.journal.dead_letter if self.journal.dead_letter.exists() else None,
            refused=refused,
        )
        self.journal.end(self.counts, self.watermark, summary.as_dict())
        log.info("watch_ended", **summary.as_dict())
        return summary

    def fail(self, error: str) -> None:
        """Say that an error ended it."""
        if self._journal:
            self._journal.fail(error)


@contextmanager
def session(source: str, settings: Settings, executor: Executor, stop: threading.Event) -> Iterator[Session]:
    """Hold the collection, with the encoder loaded, for as long as the block lasts.

    Raises CollectionHeld where another run works on the collection; LeaseLost, at the end of the block, where one has
    taken it over.
    """
    check_target(settings)
    if settings.run.executor != "local":
        raise UsageError(
            f"run.executor {settings.run.executor!r} for a source without an end",
            "One process watches it, with one lane",
            "Set run.executor to local",
        )
    with ExitStack() as stack:
        stack.callback(executor.close)
        # what is wrong with the encoders is said before anything is written
        describe_aspects(settings, describe(settings.encoder))
        store, lease = hold_collection(settings, executor, stop, stack)
        spec, tokenizer = prepare_encoder(settings.encoder)
        job = open_job(store, settings, spec, make_chunker(settings, spec, tokenizer).version)
        job = replace(job, lease=lease.token if lease else "")
        held = Session(source, job, store, executor, stop)
        list(held.run([]))  # loads the encoder before the first document comes
        try:
            yield held
            if lease:
                lease.check()
        except LeaseLost:  # the last word is that of the run that took over
            raise
        except Exception as error:
            held.fail(logs.redacted(str(error) or repr(error)))
            raise
