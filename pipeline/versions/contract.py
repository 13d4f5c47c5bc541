"""The serving contract: what a collection's metadata says about the vectors in it.

Checked before the first write and before every query, so that a collection never mixes spaces. Vectors of other
versions may lie in it where a bridge has brought them into its space; the contract names both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from pipeline.codes import LAYOUT, CodesSpec
from pipeline.config import DEFAULT_ENCODER, ENCODER_DEFAULTS, DecoderConfig, EncoderConfig
from pipeline.errors import CollectionMismatch
from pipeline.versions.aspects import AspectContract, check_aspects

KEY = "headwater"

_OPTIONAL = frozenset({"codes", "compatible", "also_cut_by", "settings", "aspects"})


@dataclass(frozen=True)
class CodesContract:
    """The codes that a collection holds.

    `folder` is where a reader finds their binarizer, `fingerprint` what it must then be. `bits`, `dims` and `scale`
    are those of the binarizer, `layout` how codes lie in the vectors called `vector_name`; `keep_vectors` says whether
    the vectors they were made from are there too.
    """

    folder: str
    fingerprint: str
    bits: int
    dims: int
    scale: Literal["norm", "projection"]
    layout: str
    vector_name: str
    keep_vectors: bool

    @property
    def spec(self) -> CodesSpec:
        """What a store needs to know of them."""
        return CodesSpec(self.fingerprint, self.bits, self.dims, self.scale)


@dataclass(frozen=True)
class Contract:
    """The encoder, chunker, vector and payload profile of a collection.

    `model`, `precision`, `max_tokens` and the prompts are what a reader needs to load the same encoder again;
    `encoder_version` is what it must then find. `dims` is the width of the vectors called `vector_name`;
    `profile` says where payloads keep text and metadata. `codes`: what vectors are stored as, or None.

    `compatible`: the other versions whose points may be here, each with the fingerprint of the bridge that mapped its
    vectors into this space. `also_cut_by`: the other chunkers whose chunks may be here, taken over as they stood when
    the encoder, and with it the tokenizer that chunks are counted by, was changed. `settings`: what else of [encoder] a
    reader needs; all that is not said is as its default. `aspects`: the points' other vectors by name.
    """

    encoder_version: str
    model: str
    precision: str
    max_tokens: int
    document_prompt: str
    query_prompt: str
    chunker_version: str
    vector_name: str
    dims: int
    distance: str
    profile: str
    codes: CodesContract | None = None
    compatible: Mapping[str, str] = field(default_factory=dict)
    also_cut_by: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    aspects: Mapping[str, AspectContract] = field(default_factory=dict)

    @property
    def encoder_versions(self) -> frozenset[str]:
        """The versions whose points may be here."""
        return frozenset({self.encoder_version, *self.compatible})

    @property
    def chunker_versions(self) -> frozenset[str]:
        """The chunkers whose chunks may be here."""
        return frozenset({self.chunker_version, *self.also_cut_by})

    @property
    def aspect_dims(self) -> dict[str, int]:
        """The widths of the points' other vectors, by name."""
        return {name: aspect.dims for name, aspect in self.aspects.items()}

    def of_vector(self, name: str, collection: str) -> Contract:
        """The contract as far as the vector called `name` is concerned; "": the main encoder's.

        Raises CollectionMismatch where points have no vector of that name.
        """
        if name in ("", self.vector_name):
            return self
        if name not in self.aspects:
            known = ", ".join(filter(None, [self.vector_name, *sorted(self.aspects)]))
            raise CollectionMismatch(
                f"no vector {name!r} in collection {collection!r}",
                f"One of {known}" if known else "No name: its points have one vector, without a name",
                "Choose another, or leave it out",
            )
        aspect = self.aspects[name]
        return replace(self, **vars(aspect), vector_name=name, codes=None, compatible={}, aspects={})

    def encoder_config(self, how: EncoderConfig) -> EncoderConfig:
        """The settings of this encoder without codes, run as `how` says, and where that names a model, from there."""
        return how.model_copy(
            update=ENCODER_DEFAULTS
            | dict(self.settings)
            | {
                "model": self.model if how.model == DEFAULT_ENCODER else how.model,
                "precision": self.precision,
                "max_tokens": self.max_tokens,
                "document_prompt": self.document_prompt,
                "query_prompt": self.query_prompt,
                "codes": "",
                "decoder": DecoderConfig(**self.settings.get("decoder", {})),
            }
        )

    def metadata(self) -> dict[str, Any]:
        """The contract in the form the collection's metadata keeps: what is optional, only where there is some."""
        said = {**vars(self), "codes": asdict(self.codes) if self.codes else None}
        said |= {"compatible": dict(self.compatible), "also_cut_by": list(self.also_cut_by)}
        said |= {"settings": dict(self.settings)}
        said |= {"aspects": {name: aspect.metadata() for name, aspect in self.aspects.items()}}
        return {KEY: {name: value for name, value in said.items() if value or name not in _OPTIONAL}}

    @classmethod
    def read(cls, metadata: Mapping[str, Any] | None, collection: str) -> Contract:
        """Read a collection's contract; raise CollectionMismatch where it has none or one of another layout."""
        found = (metadata or {}).get(KEY)
        names = {field.name for field in fields(cls)} - _OPTIONAL
        if not isinstance(found, Mapping) or not names <= set(found):
            raise CollectionMismatch(
                f"collection {collection!r} carries no contract of ours",
                "A collection that Headwater made says which encoder its vectors come from",
                "Choose another --collection name; this one was made by something else",
            )
        said: dict[str, Any] = {name: found[name] for name in names}
        said["compatible"] = dict(found.get("compatible", {}))
        said["also_cut_by"] = tuple(found.get("also_cut_by", ()))
        said["settings"] = dict(found.get("settings", {}))
        if unknown := sorted(set(said["settings"]) - set(ENCODER_DEFAULTS)):
            raise CollectionMismatch(
                f"the encoder of collection {collection!r} has settings that this version does not know: {unknown}",
                f"Some of {', '.join(sorted(ENCODER_DEFAULTS))}",
                "Use the version of headwater that made the collection",
            )
        said["aspects"] = {
            name: AspectContract.read(aspect, name, collection)
            for name, aspect in found.get("aspects", {}).items()
        }
        codes = found.get("codes")
        if codes is None:
            return cls(**said)
        wanted = {field.name for field in fields(CodesContract)}
        if not isinstance(codes, Mapping) or set(codes) != wanted or codes["layout"] != LAYOUT:
            raise CollectionMismatch(
                f"collection {collection!r} holds codes in a layout that this version does not know",
                f"The layout {LAYOUT!r}",
                "Use the version of headwater that made the collection",
            )
        said["codes"] = CodesContract(**{**codes, "bits": int(codes["bits"]), "dims": int(codes["dims"])})
        return cls(**said)

    def check_codes(self, codes: CodesContract | None, collection: str) -> None:
        """Raise CollectionMismatch unless vectors would be stored as those in the collection are."""
        if _kind(codes) == _kind(self.codes):
            return
        raise CollectionMismatch(
            f"{_said(codes)} here, but collection {collection!r} holds {_said(self.codes)}",
            "One collection holds vectors in one form",
            "Set encoder.codes and store.keep_vectors as they were, or ingest into another --collection",
        )

    def check_aspects(self, aspects: Mapping[str, AspectContract], collection: str) -> None:
        """Raise CollectionMismatch unless points would get the same further vectors, by the same encoders."""
        check_aspects(aspects, self.aspects, collection)

    def check_encoder(self, version: str, model: str, collection: str) -> None:
        """Raise CollectionMismatch unless the encoder at hand is the one that made the vectors."""
        if version != self.encoder_version:
            how = {"precision": self.precision, "max_tokens": self.max_tokens, **self.settings}
            said = f" ({', '.join(f'{name} = {value!r}' for name, value in how.items())})"
            raise CollectionMismatch(
                f"encoder {model!r} has version {version}, but collection {collection!r} holds vectors of "
                f"{self.model!r}, version {self.encoder_version}{said if model == self.model else ''}",
                "Vectors of two encoders cannot be compared, whatever their dimension",
                f"Use the encoder the collection was made with. Or go over to this one: headwater reindex --to {model} "
                "--bridge DIR keeps the collection and maps its vectors at once (headwater versions bridge makes DIR), "
                f"headwater reindex --to {model} embeds its chunks anew beside it; another --collection starts afresh",
            )

    def check_chunker(self, version: str, collection: str) -> None:
        """Raise CollectionMismatch unless chunks would be cut as those in the collection were."""
        if version != self.chunker_version:
            raise CollectionMismatch(
                f"these chunking settings have version {version}, "
                f"but collection {collection!r} was cut with version {self.chunker_version}",
                "One collection is cut in one way",
                "Restore the [chunking] settings, cut all anew beside it (headwater reindex --from SOURCE), or ingest "
                "into another --collection",
            )

    def check_profile(self, profile: str, collection: str) -> None:
        """Raise CollectionMismatch unless payloads would be laid out as those in the collection are."""
        if profile != self.profile:
            raise CollectionMismatch(
                f"store.profile is {profile!r}, but the payloads of collection {collection!r} are {self.profile!r}",
                "One collection is read by one kind of client",
                f"Set store.profile = {self.profile!r}, or ingest into another --collection",
            )


def _kind(codes: CodesContract | None) -> tuple[str, bool] | None:
    return (codes.fingerprint, codes.keep_vectors) if codes else None


def _said(codes: CodesContract | None) -> str:
    if codes is None:
        return "vectors without codes"
    kept = "with" if codes.keep_vectors else "without"
    return f"codes {codes.fingerprint[:12]} of {codes.folder} {kept} their vectors"
