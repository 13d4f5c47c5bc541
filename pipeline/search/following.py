"""An alias followed: when it is swapped, the collection it stands for now is opened beside the one before.

As Lucene's SearcherManager does it: a search acquires the searcher of the moment and releases it, and one that was
replaced is closed by the last search that uses it. For that long two encoders are in memory.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline import logs
from pipeline.config import DEFAULT_ENCODER, EncoderConfig, StoreConfig
from pipeline.errors import HeadwaterError, StoreError, TransientError
from pipeline.search.searcher import Searcher
from pipeline.stores import Store, collection
from pipeline.versions import Contract

EVERY_S = 1.0
"""Between two questions what the alias stands for."""

_LONGEST_S = 60.0  # between two attempts to open what cannot be opened

log = logs.logger(__name__)


class Following:
    """The searcher of the collection that an alias stands for. Safe to use from several threads."""

    def __init__(
        self, store: Store, config: StoreConfig, how: EncoderConfig, first: Searcher, vector: str = ""
    ) -> None:
        self._store = store
        self._config = config
        self._how = how
        self._vector = vector
        self._first = first.contract
        self._current = first
        self._users = {first: 0}
        self._lock = threading.Lock()  # of the two above
        self._looking = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def contract(self) -> Contract:
        """The contract of the collection that answers now."""
        return self._current.contract

    def start(self) -> None:
        """Look once a second, in a thread that ends with `close`, or when nobody refers to this any more."""
        arguments = weakref.ref(self), self._ended
        self._thread = threading.Thread(target=_follow, args=arguments, name="headwater-alias", daemon=True)
        self._thread.start()

    @contextmanager
    def searcher(self) -> Iterator[Searcher]:
        """The searcher of the moment, which stays open for the length of the `with` block."""
        with self._lock:
            searcher = self._current
            self._users[searcher] += 1
        try:
            yield searcher
        finally:
            with self._lock:
                self._users[searcher] -= 1
                self._close_unused()

    def look(self) -> Searcher:
        """Ask what the alias stands for, open that if it is another collection, and return what answers from now on.

        Raises what opening it raises; then the one before goes on answering.
        """
        with self._looking:
            while (physical := collection.resolve(self._store, self._config.collection)) is not None:
                if physical == self._current.physical:
                    break
                try:
                    self._move(self._open(physical))
                except StoreError:
                    if collection.resolve(self._store, self._config.collection) == physical:
                        raise  # else it was swapped again, and retired, while it was opened
            return self._current

    def try_to_look(self, waited_s: float) -> float:
        """Look, and say in how many seconds to look again; what goes wrong is logged."""
        try:
            self.look()
        except TransientError:
            return EVERY_S  # the store is away, which searches say
        except Exception as error:  # noqa: BLE001 - whatever it is, the collection before goes on answering
            said = str(error) if isinstance(error, HeadwaterError) else repr(error)
            log.error("reader_not_moved", collection=self._config.collection, why=said)
            return min(2 * waited_s, _LONGEST_S)
        return EVERY_S

    def close(self) -> None:
        """End the thread, and free the encoders."""
        self._ended.set()
        if self._thread:
            self._thread.join()
        with self._lock:
            for searcher in self._users:
                searcher.close()

    def _open(self, physical: str) -> Searcher:
        """Open a collection; where the settings say that an encoder lies is meant for the first contract's alone."""
        name = self._config.collection
        contract = Contract.read(collection.read_metadata(self._store, physical), name).of_vector(
            self._vector, name
        )
        same = (contract.model, contract.codes) == (self._first.model, self._first.codes)
        how = self._how if same else self._how.model_copy(update={"model": DEFAULT_ENCODER, "codes": ""})
        return Searcher.open(self._store, physical, self._config, how, self._vector)

    def _move(self, fresh: Searcher) -> None:
        with self._lock:
            before, self._current = self._current, fresh
            self._users[fresh] = 0
            self._close_unused()
        log.info(
            "reader_moved",
            collection=self._config.collection,
            before=before.physical,
            after=fresh.physical,
            encoder_version=fresh.contract.encoder_version,
        )

    def _close_unused(self) -> None:
        for searcher in [one for one, users in self._users.items() if not users]:
            if searcher is not self._current:
                del self._users[searcher]
                searcher.close()


def _follow(following: weakref.ref[Following], ended: threading.Event) -> None:
    wait_s = EVERY_S
    while not ended.wait(wait_s):
        followed = following()
        if followed is None:
            return
        wait_s = followed.try_to_look(wait_s)
        del followed  # nobody is kept alive while this waits
