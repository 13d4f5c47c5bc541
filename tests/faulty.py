"""Lanes that fail on purpose; Ray's processes import them from here."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pipeline.errors import EncoderError, StoreUnavailable
from pipeline.schemas import Split, SplitAck
from workers.actors import LaneActor


class DiesOfZebras(LaneActor):
    """Its process ends, as by a fault in native code, when it cuts a text with a zebra; an okapi stops it for good."""

    def open(self) -> None:
        super().open()
        chunker = self._lane._chunker
        chunk = chunker.chunk

        def cut(documents, uri):
            texts = " ".join(documents.column("text").to_pylist())
            if "zebra" in texts:
                os._exit(1)
            if "okapi" in texts:
                time.sleep(1000)
            return chunk(documents, uri)

        chunker.chunk = cut


class DiesAtStart(LaneActor):
    """Its process ends while it loads the encoder."""

    def open(self) -> None:
        os._exit(1)


class HangsOnceAtStart(LaneActor):
    """The first one never becomes ready, as over a file system that went away."""

    def open(self) -> None:
        if once(self, "hung"):
            time.sleep(1000)
        super().open()


class TwoOpenTogether(LaneActor):
    """No lane is ready before a second one is."""

    def open(self) -> None:
        super().open()
        state = Path(self._job.settings.run.state)
        (state / f"open-{os.getpid()}").touch()
        while len(list(state.glob("open-*"))) < 2:
            time.sleep(0.02)


class FindsNoModel(LaneActor):
    """On its machine the model is missing."""

    def open(self) -> None:
        raise EncoderError("model 'm' is not on this machine", "The model on every machine", "Install it")


class StoreAwayOnce(LaneActor):
    """The store does not answer for the first split that begins."""

    def run_split(self, split: Split) -> SplitAck:
        if once(self, "away"):
            raise StoreUnavailable("no answer", "A store", "Wait")
        return super().run_split(split)


def once(actor: LaneActor, what: str) -> bool:
    """Whether this is the first time, over all processes of a run."""
    try:
        (Path(actor._job.settings.run.state) / what).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
