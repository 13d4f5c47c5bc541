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
from dataclasses import dataclass, field
from typing import Any

from qdrant_client import models

from pipeline.errors import CollectionMismatch, UsageError

OURS = "headwater"
"""The key of our own fields: which chunk of which document, where in its text, and the version of its encoder."""

NAMESPACE = f"{OURS}.namespace"
DOCUMENT_ID = f"{OURS}.document_id"
CHUNK_INDEX = f"{OURS}.chunk_index"
"""Payload paths of the fields that filters name."""


@dataclass(frozen=True)
class Profile:
    """A layout of payloads.

    `text` is the key of the text, `id` that of the point's id ("": not in the payload). `metadata` is the key of the
    metadata, or "" where they lie at the payload's top; such a profile has the text inside the JSON of a LlamaIndex
    node, and `reserved` names that metadata cannot have. `indexes` are payload indexes that the client needs.
    """

    name: str
    text: str
    metadata: str
    id: str = ""
    reserved: frozenset[str] = frozenset()
    indexes: Mapping[str, models.PayloadSchemaType] = field(default_factory=dict)

    def write(self, id: str, text: str, metadata: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
        """The payload of the point `id`. Raises UsageError where metadata has a name that the profile reserves."""
        if not self.metadata:
            self._check_names(metadata)
            return {**metadata, **_node(id, text, metadata, ours), OURS: ours}
        payload = {self.text: text, self.metadata: metadata, OURS: ours}
        return {self.id: id, **payload} if self.id else payload

    def read(self, payload: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The text and the metadata of a payload that `write` made."""
        if self.metadata:
            return payload[self.text], payload[self.metadata]
        node = json.loads(payload[self.text])
        return node["text"], node["metadata"]

    def path(self, name: str) -> str:
        """The payload path of a metadata field, for filters and indexes."""
        return f"{self.metadata}.{name}" if self.metadata else name

    def _check_names(self, metadata: Mapping[str, Any]) -> None:
        taken = self.reserved & metadata.keys()
        if taken:
            raise UsageError(
                f"a metadata column is named {min(taken)!r}",
                f"In the profile {self.name!r} metadata lies beside {', '.join(sorted(self.reserved))}",
                "Leave that column out with source.metadata, rename it, or choose another store.profile",
            )


_PROFILES = {
    profile.name: profile
    for profile in (
        Profile("plain", "text", "metadata"),
        Profile("langchain", "page_content", "metadata"),
        Profile("haystack", "content", "meta", id="id"),
        Profile(
            "llamaindex",
            "_node_content",
            "",
            reserved=frozenset({"doc_id", "_node_content", "_node_type", OURS}),
            indexes={"doc_id": models.PayloadSchemaType.KEYWORD},
        ),
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


def _node(id: str, text: str, metadata: dict[str, Any], ours: dict[str, Any]) -> dict[str, str]:
    """A LlamaIndex TextNode as its vector stores keep one."""
    node = {
        "id_": id,
        "text": text,
        "metadata": metadata,
        "relationships": {
            "1": {"node_id": ours["document_id"]}
        },  # 1: the document that the node is a part of
        "start_char_idx": ours["start"],
        "end_char_idx": ours["end"],
    }
    content = json.dumps(node, ensure_ascii=False, separators=(",", ":"))
    return {"doc_id": ours["document_id"], "_node_content": content, "_node_type": "TextNode"}
