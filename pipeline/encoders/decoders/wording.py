"""The token ids that a prompt puts around a text, and the tokenizer.json that puts them there.

A text's tokens come between the prompt's, as they are alone: so the text can be cut anywhere, and the prompt is whole
whatever the text's length. Where a text ends with a full stop, the papers' code makes one token of that and the closing
quote if the vocabulary has one; here they stay two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.decoders.prompts import parts_of
from pipeline.encoders.decoders.spec import DecoderSpec
from pipeline.errors import EncoderError, UsageError
from pipeline.tokens import TEXT, Tokenizer

# Texts that begin in different ways: what all of them come behind is the prompt.
_STARTS = ("a", "The", "7", "été", "水", "(", "\n", ".", "-")
# Post-processors that put special tokens around a text; all others only move offsets.
_DRESSING = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")

Around = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids before a text and after it."""


@dataclass(frozen=True)
class LeftOut:
    """Rows that begin with these ids were given a prompt: their first `tokens` tokens are seen, but not pooled."""

    begins: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Wording:
    """What goes around a text, once for each template, the longest first; `slot`: the slot's token, or -1.

    left_out: of which rows some tokens are not pooled.
    """

    rows: tuple[Around, ...]
    slot: int
    left_out: tuple[LeftOut, ...] = ()

    @classmethod
    def read(cls, manifest: Mapping[str, Any]) -> Wording | None:
        """Out of an exported encoder's manifest; None where it is no language model's."""
        values = manifest.get("wording")
        if values is None:
            return None
        rows = tuple((tuple(before), tuple(after)) for before, after in values["rows"])
        left_out = (LeftOut(tuple(one["begins"]), int(one["tokens"])) for one in values.get("left_out", ()))
        return cls(rows, int(values["slot"]), tuple(left_out))

    def inputs(self, ids: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        """The rows for a text, given with the first template around it; an instruction before it counts as text."""
        before, after = self.rows[0]
        body = ids[len(before) : len(ids) - len(after)]
        return [np.concatenate([left, body, right]).astype(np.int32) for left, right in self.rows]


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
    around = [
        (tokenizer.tokenize(left).ids.tolist(), tokenizer.behind(right).tolist()) for left, _, right in parts
    ]
    middles = [tokenizer.tokenize(middle).ids.tolist() if middle else [] for _, middle, _ in parts]
    taken = {*first, *last, *(token for left, right in around for token in (*left, *right))}
    slot = _free(definition, taken | {token for middle in middles for token in middle})
    end = _end_of_text(config, decoder.pooling) if decoder.ends_text else []
    rows = []
    for (left, right), middle, (_, between, _) in zip(around, middles, parts, strict=True):
        before = [*first, *left, *([slot] if between is not None else []), *middle]
        after = right if decoder.templates else last
        rows.append((tuple(before), tuple(after if after[-1:] == end else [*after, *end])))
    rows.sort(key=lambda row: -len(row[0]) - len(row[1]))
    return Wording(tuple(rows), slot if decoder.prepending else -1)


def leave_out(definition: Mapping[str, Any], prompts: Sequence[str]) -> tuple[LeftOut, ...]:
    """How rows with these prompts begin, and how many of their tokens are not pooled, as NV-Embed's code counts them.

    That leaves out as many tokens from the row's start as the prompt has by itself. `definition` is the encoder's
    tokenizer.json. A row is known by the tokens that stand before any text: where a prompt ends with a blank, many
    tokenizers make that a part of the text's first token. Raises UsageError for a prompt that no row begins with.
    """
    content = json.dumps(definition).encode("utf-8")
    plain = Tokenizer(content)
    found = []
    for prompt in dict.fromkeys(prompts):
        before = prompt.partition(TEXT)[0]
        if not before:
            continue
        rows = [row.tolist() for row in Tokenizer(content, before).encode_batch(_STARTS)]
        begins = [
            same[0] for same in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))
        ]
        if len(begins) <= plain.around[0]:
            raise UsageError(
                f"the prompt {before!r}, which has no token of its own before every text, and this model pools its "
                "texts without their prompts",
                "A prompt that ends with a blank or a new line",
                "Lengthen it, or leave it out",
            )
        found.append(LeftOut(tuple(begins), len(plain.tokenize(before).ids)))
    return tuple(found)


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


def _free(definition: Mapping[str, Any], taken: set[int]) -> int:
    """A token that stands nowhere in the prompt: a special one if possible, which hardly any text holds."""
    special = [token["id"] for token in definition["added_tokens"] if token.get("special")]
    every = range(len(definition["model"]["vocab"]) - 1, -1, -1)
    return next(int(token) for token in (*sorted(special), *every) if token not in taken)


def _end_of_text(config: Mapping[str, Any], pooling: str) -> list[int]:
    said = config.get("eos_token_id")
    said = said[0] if isinstance(said, list) and said else said
    if not isinstance(said, int):
        raise EncoderError(
            f"encoder.decoder.pooling is {pooling}, and the model's eos_token_id is {said!r}",
            "A model with a token that ends a text",
            "Set encoder.decoder.pooling to last",
        )
    return [said]
