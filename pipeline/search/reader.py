"""Reader: searches the collection that an alias stands for, through every swap of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self

from pipeline.config import EncoderConfig, StoreConfig
from pipeline.errors import StoreError
from pipeline.search.following import Following
from pipeline.search.searcher import Result, Searcher
from pipeline.stores import Purpose, Store, open_collection
from pipeline.versions import Contract


class Reader:
    """Searches one collection with the encoder its contract names; refuses any other.

    When its alias is swapped to another version of the collection, it notices within a second or two, opens that
    beside the one before, and answers from it as soon as its encoder is loaded; until then, and where that fails, from
    the one before. A search is answered by one version.

    May be used from several threads at once. The `_async` methods search in a thread of the loop's own pool, so that
    the event loop goes on meanwhile.
    """

    def __init__(self, store: Store, following: Following) -> None:
        self._store = store
        self._following = following

    @classmethod
    def open(
        cls, store_config: StoreConfig, encoder_config: EncoderConfig | None = None, vector: str = ""
    ) -> Self:
        """Open the store, read the contract behind the alias and load its encoder, or that of its aspect `vector`.

        What the encoder is comes from the contract. `encoder_config` says how it is run (provider, threads, cache)
        and, where it names a model or codes, where those of this contract lie now; their version must be the contract's
        all the same. Raises CollectionMismatch where the collection is missing or the encoder is another one, and where
        points have no such vector.
        """
        how = encoder_config or EncoderConfig()
        store, physical = open_collection(store_config, Purpose.SEARCH)
        try:
            searcher = Searcher.open(store, physical, store_config, how, vector)
        except BaseException:
            store.close()
            raise
        following = Following(store, store_config, how, searcher, vector)
        following.start()
        return cls(store, following)

    @property
    def contract(self) -> Contract:
        """The contract of the version that answers now."""
        return self._following.contract

    def search(
        self, query: str, limit: int = 10, where: Sequence[str] = (), by_document: bool = False
    ) -> list[Result]:
        """The `limit` chunks nearest to the query, best first; with `by_document` each document's best chunk.

        `where` holds conditions on metadata, all of which must hold: `year>=2000`, `lang=en|de`.
        """
        return self.search_many([query], limit, where, by_document)[0]

    def search_many(
        self, queries: Sequence[str], limit: int = 10, where: Sequence[str] = (), by_document: bool = False
    ) -> list[list[Result]]:
        """One list of results a query, in the order of the queries."""
        if not queries:
            return []
        while True:
            with self._following.searcher() as searcher:
                try:
                    return searcher.find(searcher.embed(queries), limit, where, by_document)
                except StoreError:
                    # A version that was retired is gone: ask again, of the one that answers now.
                    if self._following.look() is searcher:
                        raise

    async def search_async(
        self, query: str, limit: int = 10, where: Sequence[str] = (), by_document: bool = False
    ) -> list[Result]:
        """`search` for an event loop."""
        return await asyncio.to_thread(self.search, query, limit, where, by_document)

    async def search_many_async(
        self, queries: Sequence[str], limit: int = 10, where: Sequence[str] = (), by_document: bool = False
    ) -> list[list[Result]]:
        """`search_many` for an event loop."""
        return await asyncio.to_thread(self.search_many, queries, limit, where, by_document)

    def close(self) -> None:
        """Close the store and free the encoder."""
        self._following.close()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
