"""What a model knows of a token's place, read from its configuration."""

from __future__ import annotations

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
_LIMITS = ("max_position_embeddings", "n_positions")


def positions(folder: ModelFolder) -> int | None:
    """How many tokens the model has positions for; None where positions are relative and unbounded."""
    config = folder.config.get("text_config") or folder.config
    found = next((config[key] for key in _LIMITS if isinstance(config.get(key), int)), 0)
    if found <= 0 or config.get("position_embedding_type") == "alibi":
        return None
    return int(found) - (folder.pad_id + 1 if config.get("model_type") in _OFFSET else 0)
