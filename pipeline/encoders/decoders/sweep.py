"""A language model's vectors out of each of its layers at once: what is measured before an encoder is made.

By the stock model, as the gate's reference is: one pass gives what every `out_layer` would, but for rounding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DecoderConfig, EncoderConfig
from pipeline.encoders.batching import plan_batches
from pipeline.encoders.decoders.loading import load_decoder
from pipeline.encoders.decoders.reading import read_model
from pipeline.encoders.decoders.reference import hidden_states, pool
from pipeline.encoders.decoders.spec import DecoderSpec, describe_decoder
from pipeline.encoders.decoders.wording import Wording, word, worded
from pipeline.encoders.describe import document_prompt_of, usual_tokens
from pipeline.encoders.elastic import layers_of
from pipeline.encoders.folder import ModelFolder, read_json
from pipeline.encoders.locate import locate
from pipeline.encoders.parity import pad
from pipeline.encoders.prepare import check_room, write_tokenizer
from pipeline.encoders.stock import quiet
from pipeline.errors import UsageError
from pipeline.tokens import Tokenizer

_BATCH_TOKENS = 1024


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded language model and its own tokenizer.json. Not thread-safe."""

    config: EncoderConfig
    folder: ModelFolder
    transformer: Any
    tokenizer: dict[str, Any]

    @classmethod
    def open(cls, config: EncoderConfig) -> Checkpoint:
        """Load it into memory; writes nothing. Raises EncoderError as `load_decoder` does."""
        folder = read_model(locate(config.model).folder)
        with TemporaryDirectory() as scratch:
            write_tokenizer(folder, None, Path(scratch) / "tokenizer.json")
            tokenizer = read_json(Path(scratch) / "tokenizer.json")
        with quiet():
            return cls(config, folder, load_decoder(folder), tokenizer)

    @property
    def layers(self) -> int:
        """How many layers the model has."""
        return layers_of(self.folder)

    def vectors(
        self, how: DecoderConfig, texts: Sequence[str], observe: Callable[[int], None] = lambda _: None
    ) -> NDArray[np.float32]:
        """float32[layers + 1, n, hidden], not normalised: entry l is what `out_layer` l makes of n texts.

        Entries below `exit` are of no use with prepending. `observe` is told how many texts are done. Texts that are
        longer than the encoder would take lose their end.
        """
        wording, decoder, rows = self.rows(how, texts)
        found = np.empty((self.layers + 1, len(rows), self.transformer.config.hidden_size), np.float32)
        done = 0
        for batch in plan_batches([len(row) for row in rows], _BATCH_TOKENS):
            ids, mask = pad([rows[number] for number in batch], self.folder.pad_id)
            states = hidden_states(self.transformer, decoder, wording.slot, ids, mask)
            for place, number in enumerate(batch):
                kept = mask[place] > 0
                found[:, number] = [pool(decoder.pooling, layer[place][kept]) for layer in states]
            done += len(batch)
            observe(done // len(wording.rows))
        several = found.reshape(self.layers + 1, len(texts), len(wording.rows), found.shape[2])
        means: NDArray[np.float32] = several.mean(axis=2)
        return means

    def rows(
        self, how: DecoderConfig, texts: Sequence[str]
    ) -> tuple[Wording, DecoderSpec, list[NDArray[np.int32]]]:
        """What the settings put around texts, what they are for this model, and the model's rows, text by text."""
        decoder = describe_decoder(self.folder, self.config.model_copy(update={"decoder": how}))
        if decoder is None:
            raise UsageError(
                f"settings without a prompt or a pooling: {how!r}", "One of them", "Name a prompt"
            )
        wording = word(self.tokenizer, decoder, self.folder.config)
        definition = json.dumps(worded(self.tokenizer, wording)).encode("utf-8")
        tokenizer = Tokenizer(definition, document_prompt_of(self.folder, self.config))
        most = usual_tokens(self.folder, self.config)
        check_room(tokenizer, most)
        return (
            wording,
            decoder,
            [row for text in texts for row in wording.inputs(_input(tokenizer, text, most))],
        )


def _input(tokenizer: Tokenizer, text: str, most: int) -> NDArray[np.int32]:
    """A text as the model takes it, without what is too much of its end; the prompt around it stays whole."""
    ids = tokenizer.encode(text)
    if len(ids) <= most:
        return ids
    return tokenizer.model_input(tokenizer.tokenize(text).ids[: most - tokenizer.special_tokens])
