"""The token ids that a prompt puts around a text, and the tokenizer.json that puts them there.

A text's tokens come between the prompt's, as they are alone: so the text can be cut anywhere, and the prompt is whole
whatever the text's length. Where a text ends with a full stop, the papers' code makes one token of that and the closing
quote if the vocabulary has one; here they stay two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.decoders.prompts import parts_of
from pipeline.encoders.decoders.spec import DecoderSpec
from pipeline.errors import EncoderError
from pipeline.tokens import Tokenizer

# Post-processors that put special tokens around a text; all others only move offsets.
_DRESSING = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")

Around = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids before a text and after it."""


@dataclass(frozen=True)
class Wording:
    """What goes around a text, once for each template, the longest first; `slot`: the slot's token, or -1."""

    rows: tuple[Around, ...]
    slot: int

    @classmethod
    def read(cls, manifest: Mapping[str, Any]) -> Wording | None:
        """Out of an exported encoder's manifest; None where it is no language model's."""
        values = manifest.get("wording")
        if values is None:
            return None
        rows = tuple((tuple(before), tuple(after)) for before, after in values["rows"])
        return cls(rows, int(values["slot"]))

    def inputs(self, ids: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        """The rows for a text, given with the first template around it; an instruction before it counts as text."""
        before, after = self.rows[0]
        body = ids[len(before) : len(ids) - len(after)]
        return [np.concatenate([left, body, right]).astype(np.int32) for left, right in self.rows]


def slot_of(manifest: Mapping[str, Any]) -> int:
    """The id of the slot's token in an exported encoder; -1 for none."""
    wording = Wording.read(manifest)
    return wording.slot if wording else -1


def word(definition: dict[str, Any], decoder: DecoderSpec, config: Mapping[str, Any]) -> Wording:
    """The ids around a text. `definition` is the model's own tokenizer.json, `config` its configuration.

    Special tokens that the tokenizer itself puts before a text stay before the prompt; those behind it are left out
    where a prompt ends the row. The slot's token is one that stands nowhere else in the prompt: what it is hardly
    matters, as its state is overwritten. Raises EncoderError where the model has no end-of-text token to pool.
    """
    tokenizer = Tokenizer(json.dumps(definition).encode("utf-8"))
    own = tokenizer.model_input(np.empty(0, np.int32)).tolist()
    first, last = own[: tokenizer.around[0]], own[tokenizer.around[0] :]
    parts = [parts_of(template) for template in decoder.templates] or [("", None, "")]
    around = [(tokenizer.tokenize(left).ids.tolist(), _after(tokenizer, right)) for left, _, right in parts]
    middles = [tokenizer.tokenize(middle).ids.tolist() if middle else [] for _, middle, _ in parts]
    taken = {*first, *last, *(token for left, right in around for token in (*left, *right))}
    slot = _free(definition, taken | {token for middle in middles for token in middle})
    end = _end_of_text(config) if decoder.pooling == "eos" else []
    rows = []
    for (left, right), middle, (_, between, _) in zip(around, middles, parts, strict=True):
        before = [*first, *left, *([slot] if between is not None else []), *middle]
        after = right if decoder.templates else last
        rows.append((tuple(before), tuple(after if after[-1:] == end else [*after, *end])))
    rows.sort(key=lambda row: -len(row[0]) - len(row[1]))
    return Wording(tuple(rows), slot if decoder.prepending else -1)


def worded(definition: dict[str, Any], wording: Wording) -> dict[str, Any]:
    """The tokenizer.json that puts the first template around every text."""
    given = definition.get("post_processor")
    steps = given["processors"] if given and given["type"] == "Sequence" else [given] if given else []
    before, after = (
        {"id": name, "ids": list(ids), "tokens": [str(token) for token in ids]}
        for name, ids in zip(("before the text", "after the text"), wording.rows[0], strict=True)
    )
    pieces: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    if before["ids"]:
        pieces.insert(0, {"SpecialToken": {"id": before["id"], "type_id": 0}})
    if after["ids"]:
        pieces.append({"SpecialToken": {"id": after["id"], "type_id": 0}})
    template = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {piece["id"]: piece for piece in (before, after) if piece["ids"]},
    }
    kept = [step for step in steps if step["type"] not in _DRESSING]
    return definition | {"post_processor": {"type": "Sequence", "processors": [*kept, template]}}


def _after(tokenizer: Tokenizer, text: str) -> list[int]:
    """What a template says behind a text, as it is behind a letter: some tokenizers begin a text with a blank."""
    letter = tokenizer.tokenize("a").ids.tolist()
    both = tokenizer.tokenize(f"a{text}").ids.tolist()
    found: list[int] = (
        both[len(letter) :] if both[: len(letter)] == letter else tokenizer.tokenize(text).ids.tolist()
    )
    return found


def _free(definition: Mapping[str, Any], taken: set[int]) -> int:
    """A token that stands nowhere in the prompt: a special one if possible, which hardly any text holds."""
    special = [token["id"] for token in definition["added_tokens"] if token.get("special")]
    every = range(len(definition["model"]["vocab"]) - 1, -1, -1)
    return next(int(token) for token in (*sorted(special), *every) if token not in taken)


def _end_of_text(config: Mapping[str, Any]) -> list[int]:
    said = config.get("eos_token_id")
    said = said[0] if isinstance(said, list) and said else said
    if not isinstance(said, int):
        raise EncoderError(
            f"encoder.decoder.pooling is eos, and the model's eos_token_id is {said!r}",
            "A model with a token that ends a text",
            "Set encoder.decoder.pooling to last",
        )
    return [said]
