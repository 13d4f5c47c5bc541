"""What a model knows of a token's place, read from its configuration: none of it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.encoders.folder import ModelFolder

# Count positions from the padding token's id on, so that many rows of the table are never used.
_OFFSET = {
    "camembert",
    "longformer",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
}
# Have one table of positions that is looked up once, before the first layer.
_LEARNED = {"bert", "distilbert", "electra", "ernie", *_OFFSET} - {"longformer"}
_RELATIVE = {"deberta", "deberta-v2", "mt5", "t5", "umt5"}
# ModernBERT as it is published has a base for either kind of layer.
_ROTARY = ("rope_parameters", "rope_theta", "rotary_emb_base", "global_rope_theta")
_LIMITS = ("max_position_embeddings", "n_positions")
_SLIDING = {"mistral", "mixtral", "phi3", "phimoe", "starcoder2"}
_LOCAL = ("local_attention", "sliding_window", "attention_window")


@dataclass(frozen=True)
class Positions:
    """How a model tells tokens' places apart.

    kind: "learned", a table with a row a position; "rotary", angles; "relative", a bias by distance; or "unknown".
    window: how many tokens it has positions for; None where they are relative and unbounded.
    offset: rows of the table before that of the first token.
    local: some layers see near tokens alone.
    sliding: all layers see so many tokens before each (Mistral); 0: not so.
    """

    kind: Literal["learned", "rotary", "relative", "unknown"]
    window: int | None
    offset: int
    local: bool
    sliding: int = 0


def read_positions(folder: ModelFolder) -> Positions:
    """The position scheme of a model."""
    config = folder.config.get("text_config") or folder.config
    name = str(config.get("model_type"))
    limit = next((int(config[key]) for key in _LIMITS if isinstance(config.get(key), int)), 0)
    offset = folder.pad_id + 1 if name in _OFFSET else 0
    unbounded = limit <= 0 or config.get("position_embedding_type") == "alibi"
    return Positions(
        _kind(name, config),
        None if unbounded else limit - offset,
        offset,
        any(config.get(key) for key in _LOCAL),
        int(config.get("sliding_window") or 0) if name in _SLIDING else 0,
    )


def _kind(name: str, config: dict[str, Any]) -> Literal["learned", "rotary", "relative", "unknown"]:
    if config.get("position_embedding_type") == "alibi":
        return "relative"
    if name in _LEARNED and config.get("position_embedding_type", "absolute") == "absolute":
        return "learned"
    if any(config.get(key) for key in _ROTARY):
        return "rotary"
    return "relative" if name in _RELATIVE else "unknown"
