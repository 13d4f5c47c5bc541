"""EncoderSpec: everything that changes a vector; its hash is the encoder's version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from pipeline.codes import Binarizer, CodesSpec
from pipeline.encoders.decoders.spec import DecoderSpec
from pipeline.encoders.hashes import hash_json
from pipeline.encoders.long import WINDOWS, LongSpec
from pipeline.errors import EncoderError

# How the graph of a lower precision is made: raise it where the numbers change, as they are then another encoder's.
_SCHEMES = {"fp16": 1, "int8": 1}
# Count in a version only where they are set, so that encoders without them keep theirs.
_LATER_FIELDS = ("codes", "layers", "long", "decoder")


@dataclass(frozen=True)
class EncoderSpec:
    """What makes an encoder's vectors; equal specs make equal vectors. Picklable, holds no path of this machine.

    source: what the user named, a folder as an absolute path; not part of the version.
    weights, tokenizer, config: SHA-256 of the weights' files, the tokenizer, and the architecture's settings.
    modules: pooling modes, then dense layers (with their hash), "slice:DIMS" and "normalize", in order.
    max_tokens: the longest input, special tokens and prompt included.
    dims: length of a vector.
    codes: what vectors become before they are stored; None: they are stored as they are.
    layers: how many of the transformer's layers run; 0: all.
    long: how texts are embedded that are longer than the model's window; None: it has none.
    decoder: how a language model makes vectors; None: the model is an encoder as it is.
    """

    source: str
    format: Literal["safetensors", "onnx", "gguf"]
    weights: str
    tokenizer: str
    config: str
    modules: tuple[str, ...]
    document_prompt: str
    query_prompt: str
    max_tokens: int
    dims: int
    precision: Literal["fp32", "fp16", "int8"]
    codes: CodesSpec | None = None
    layers: int = 0
    long: LongSpec | None = None
    decoder: DecoderSpec | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any], source: str) -> EncoderSpec:
        """The spec of an encoder without codes, from the JSON values of its fields.

        Raises ValueError or TypeError where they are not those.
        """
        if names := set(values) - {field.name for field in fields(cls)}:
            raise ValueError(f"fields that this version does not know: {', '.join(sorted(names))}")
        long = LongSpec(**values["long"]) if values.get("long") else None
        decoder = DecoderSpec(**values["decoder"]) if values.get("decoder") else None
        read = {"source": source, "modules": tuple(values["modules"]), "codes": None}
        return cls(**{**values, **read, "long": long, "decoder": decoder})

    @cached_property
    def version(self) -> str:
        """64 hex digits: the SHA-256 of the canonical JSON of all fields but `source`."""
        values = {name: value for name, value in asdict(self).items() if name != "source"}
        for name in _LATER_FIELDS:
            if not values[name]:
                del values[name]
        if self.decoder:  # what is said counts, not what it is called
            values["decoder"]["prompt"] = self.decoder.templates
        if self.precision in _SCHEMES:
            values["scheme"] = _SCHEMES[self.precision]
        return hash_json(values)

    @property
    def row(self) -> Literal["text", "window", "prompt", "document"]:
        """What a row of the graph holds: a text; one of its windows; it in one of several prompts; or a document.

        Of windows and prompts the mean is the text's vector; the chunks of a document each get one out of its rows.
        """
        if self.long and self.long.late:
            return "document"
        if self.long and self.long.method in WINDOWS:
            return "window"
        return "prompt" if self.decoder and len(self.decoder.templates) > 1 else "text"

    @property
    def longest_row(self) -> int:
        """The most tokens that the graph is given in a row."""
        return self.long.window if self.long and self.row == "window" else self.max_tokens

    @property
    def normalised(self) -> bool:
        """Whether vectors have the length 1."""
        return self.modules[-1] == "normalize"

    @property
    def settings(self) -> dict[str, Any]:
        """The keys of [encoder] that make this encoder again, without its codes, while its model lies at `source`."""
        return {
            "model": self.source,
            "precision": self.precision,
            "max_tokens": self.max_tokens,
            "document_prompt": self.document_prompt,
            "query_prompt": self.query_prompt,
            "dims": self.dims,
            "layers": self.layers,
            "long": self.long.method if self.long else "split",
            "attention_scaling": bool(self.long and self.long.attention_scaling),
            "decoder": self.decoder.settings if self.decoder else {},
        }

    @property
    def unusual_settings(self) -> dict[str, Any]:
        """Those of `settings` that few encoders have, where they are set: they say nothing where they are not here."""
        set_here = {"layers": self.layers, "long": self.long, "decoder": self.decoder} | {
            "dims": any(module.startswith("slice:") for module in self.modules),
            "attention_scaling": self.long and self.long.attention_scaling,
        }
        return {name: value for name, value in self.settings.items() if set_here.get(name)}

    @property
    def plain(self) -> EncoderSpec:
        """The same encoder without codes."""
        return replace(self, codes=None)

    def coded(self, binarizer: Binarizer) -> EncoderSpec:
        """Put a binarizer behind this encoder; raises EncoderError where that takes other vectors."""
        if binarizer.spec.input_dims != self.dims:
            raise EncoderError(
                f"codes for vectors of {binarizer.spec.input_dims} dimensions, and {self.source!r} makes {self.dims}",
                "The encoder that the codes were trained with",
                "Use that encoder, or train codes for this one",
            )
        return replace(self, codes=CodesSpec.of(binarizer))
