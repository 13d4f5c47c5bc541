"""What a contract says of a collection's aspects: its further vectors, each by an encoder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from pipeline.config import ENCODER_DEFAULTS
from pipeline.errors import CollectionMismatch


@dataclass(frozen=True)
class AspectContract:
    """An aspect's encoder: `encoder_version`, and what a reader needs to load it again, as in `Contract`."""

    encoder_version: str
    model: str
    precision: str
    max_tokens: int
    document_prompt: str
    query_prompt: str
    dims: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, said: Any, name: str, collection: str) -> Self:  # noqa: ANN401 - whatever the metadata holds
        """Read an aspect's part of a contract; raise CollectionMismatch for one of another layout."""
        wanted = {field.name for field in fields(cls)}
        known = isinstance(said, Mapping) and set(said) == wanted
        if not known or not set(said["settings"]) <= set(ENCODER_DEFAULTS):
            raise CollectionMismatch(
                f"aspect {name!r} of collection {collection!r} is described in a way that this version does not know",
                f"Values of {', '.join(sorted(wanted))}",
                "Use the version of headwater that made the collection",
            )
        return cls(**{**said, "dims": int(said["dims"]), "max_tokens": int(said["max_tokens"])})

    def metadata(self) -> dict[str, Any]:
        """The aspect in the form that the collection's metadata keeps."""
        return asdict(self)

    def check_encoder(self, version: str, model: str, name: str, collection: str) -> None:
        """Raise CollectionMismatch unless the encoder at hand is the one that made the vectors called `name`."""
        if version != self.encoder_version:
            raise CollectionMismatch(
                f"the encoder of aspect {name!r}, {model!r}, has version {version}, but collection {collection!r} "
                f"holds vectors of {self.model!r} there, version {self.encoder_version}",
                "Vectors of two encoders cannot be compared, whatever their dimension",
                f"Restore aspects.{name} and its model as they were, or ingest into another --collection",
            )


def check_aspects(
    here: Mapping[str, AspectContract], held: Mapping[str, AspectContract], collection: str
) -> None:
    """Raise CollectionMismatch unless the aspects that the settings name are those that a collection holds."""
    if here.keys() != held.keys():
        raise CollectionMismatch(
            f"{_said(here)} here, but collection {collection!r} holds {_said(held)}",
            "All points of a collection have the same vectors",
            "Set [aspects] as it was, or ingest into another --collection",
        )
    for name, aspect in here.items():
        held[name].check_encoder(aspect.encoder_version, aspect.model, name, collection)


def _said(aspects: Mapping[str, AspectContract]) -> str:
    found = ", ".join(
        f"{name} ({aspect.model}, {aspect.dims} dims)" for name, aspect in sorted(aspects.items())
    )
    return f"aspects {found}" if found else "no aspects"
