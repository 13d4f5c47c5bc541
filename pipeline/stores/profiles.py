"""Payload profiles: where a point's payload keeps a chunk's text and its document's metadata.

Each is what one RAG client expects to read. Our own fields are under the key `headwater` in all of them, and the
text is stored once:

plain       {"text": …, "metadata": {…}, "headwater": {…}}
langchain   {"page_content": …, "metadata": {…}, "headwater": {…}}
haystack    {"id": …, "content": …, "meta": {…}, "headwater": {…}}
llamaindex  {…metadata, "doc_id": …, "_node_content": "…", "_node_type": "TextNode", "headwater": {…}}

LlamaIndex filters on metadata at the top of the payload, and makes its nodes from `_node_content`: JSON with the text
and the metadata once more. It can do with a text alone, but then everything else in the payload counts as metadata,
which it shows to language models: our fields too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from qdrant_client import models

from pipeline.errors import CollectionMismatch, UsageError

OURS = "headwater"
"""The key of our own fields: which chunk of which document, where in its text, and the version of its encoder."""

NAMESPACE = f"{OURS}.namespace"
DOCUMENT_ID = f"{OURS}.document_id"
CHUNK_INDEX = f"{OURS}.chunk_index"
ENCODER_VERSION = f"{OURS}.encoder_version"
"""Payload paths of the fields that filters name."""

RESERVED = frozenset({"doc_id", "_node_content", "_node_type", OURS})
"""Names that metadata cannot have where it lies at the payload's top, as LlamaIndex wants it."""


class Profile(Protocol):
    """A layout of payloads."""

    @property
    def name(self) -> str:
        """What `store.profile` calls it."""

    @property
    def indexes(self) -> Mapping[str, models.PayloadSchemaType]:
        """The payload indexes that its client needs."""

    def write(self, id: str, text: str, metadata: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
        """The payload of the point `id`. Raises UsageError where metadata has a name that the profile reserves."""

    def read(self, payload: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The text and the metadata of a payload that `write` made."""

    def path(self, name: str) -> str:
        """The payload path of a metadata field, for filters and indexes."""


@dataclass(frozen=True)
class Keyed:
    """Text and metadata each under a key of their own, and the point's id under `id` ("": not in the payload)."""

    name: str
    text: str
    metadata: str
    id: str = ""

    @property
    def indexes(self) -> Mapping[str, models.PayloadSchemaType]:
        """None: see `Profile`."""
        return {}

    def write(self, id: str, text: str, metadata: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
        """See `Profile`; every name may be metadata's."""
        payload = {self.text: text, self.metadata: metadata, OURS: ours}
        return {self.id: id, **payload} if self.id else payload

    def read(self, payload: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """See `Profile`."""
        return payload[self.text], payload[self.metadata]

    def path(self, name: str) -> str:
        """See `Profile`."""
        return f"{self.metadata}.{name}"


@dataclass(frozen=True)
class LlamaIndexNode:
    """The text inside the JSON of a LlamaIndex TextNode, and metadata at the payload's top."""

    name: str = "llamaindex"

    @property
    def indexes(self) -> Mapping[str, models.PayloadSchemaType]:
        """That of the document's id: see `Profile`."""
        return {"doc_id": models.PayloadSchemaType.KEYWORD}

    def write(self, id: str, text: str, metadata: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
        """See `Profile`."""
        taken = RESERVED & metadata.keys()
        if taken:
            raise UsageError(
                f"a metadata column is named {min(taken)!r}",
                f"In the profile {self.name!r} metadata lies beside {', '.join(sorted(RESERVED))}",
                "Leave that column out with source.metadata, rename it, or choose another store.profile",
            )
        node = {
            "id_": id,
            "text": text,
            "metadata": metadata,
            "relationships": {"1": {"node_id": ours["document_id"]}},  # 1: the document it is a part of
            "start_char_idx": ours["start"],
            "end_char_idx": ours["end"],
        }
        return {
            **metadata,
            "doc_id": ours["document_id"],
            "_node_content": json.dumps(node, ensure_ascii=False, separators=(",", ":")),
            "_node_type": "TextNode",
            OURS: ours,
        }

    def read(self, payload: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """See `Profile`."""
        node = json.loads(payload["_node_content"])
        return node["text"], node["metadata"]

    def path(self, name: str) -> str:
        """See `Profile`."""
        return name


_PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Keyed("plain", "text", "metadata"),
        Keyed("langchain", "page_content", "metadata"),
        Keyed("haystack", "content", "meta", id="id"),
        LlamaIndexNode(),
    )
}


def profile_named(name: str) -> Profile:
    """The profile of this name; CollectionMismatch for one that we do not know."""
    if name not in _PROFILES:
        raise CollectionMismatch(
            f"payload profile {name!r}",
            f"One of {', '.join(sorted(_PROFILES))}",
            "Use the version of headwater that made the collection",
        )
    return _PROFILES[name]
