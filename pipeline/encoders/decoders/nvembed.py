"""NV-Embed checkpoints (arXiv 2405.17428), read as they are saved: a Mistral in which all tokens see each other.

config.json     model_type nvembed; the transformer's settings in text_config, those of its pooling in
                latent_attention_config
tensors         embedding_model.… of the transformer, latent_attention_model.… of the pooling

Their repositories bring Python code, which is not run: the transformer is transformers' own Mistral.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.encoders.folder import Head, ModelFolder, find_tokenizer, find_weights, read_json, read_prompts
from pipeline.errors import EncoderError

TYPE = "nvembed"
_TRANSFORMERS = ("bidir_mistral", "mistral")
_POOLING = "latent_attention_config"
# What the checkpoint says beside its transformer's settings, of what counts here.
_SAID = (_POOLING, "is_mask_instruction", "padding_side")


def is_nvembed(root: Path) -> bool:
    """Whether a folder holds such a checkpoint."""
    return read_json(root / "config.json", missing_ok=True).get("model_type") == TYPE


def read_nvembed(root: Path) -> ModelFolder:
    """The checkpoint as a folder of its transformer; what else its configuration says stands in `config` under TYPE.

    Raises EncoderError for another transformer than a Mistral.
    """
    config = read_json(root / "config.json")
    text = config.get("text_config")
    if not isinstance(text, dict) or text.get("model_type") not in _TRANSFORMERS:
        got = text.get("model_type") if isinstance(text, dict) else "no text_config"
        raise EncoderError(
            f"the NV-Embed checkpoint {root} with {got!r} for its transformer",
            f"text_config with model_type {' or '.join(_TRANSFORMERS)}",
            "Choose another model",
        )
    kind, weights = find_weights(root)
    prompts, default = read_prompts(root)
    # their own forward pass lets all tokens see each other, however far apart
    transformer = {**text, "model_type": "mistral", "sliding_window": None}
    said = {name: config[name] for name in _SAID if name in config}
    return ModelFolder(
        root=root,
        transformer=root,
        format=kind,
        weights=weights,
        tokenizer=find_tokenizer(root),
        config={**transformer, "architectures": config.get("architectures"), TYPE: said},
        settings=read_json(root / "sentence_bert_config.json", missing_ok=True),
        prompts=prompts,
        default_prompt=default,
        head=Head(("mean",), ("normalize",)),
    )


def latent_settings(folder: ModelFolder) -> dict[str, Any] | None:
    """The settings of an NV-Embed checkpoint's latent attention, where it says them; None for any other model."""
    said = folder.config.get(TYPE)
    if said is None:
        return None
    found = said.get(_POOLING) or {}
    if not isinstance(found, dict):
        raise EncoderError(
            f"{_POOLING} = {found!r} in {folder.root / 'config.json'}",
            "Its settings",
            "Fetch the model again",
        )
    return found


def pools_prompt(folder: ModelFolder) -> bool:
    """Whether the tokens of a prompt are pooled too; those of NV-Embed were trained without them."""
    said = folder.config.get(TYPE) or {}
    return not (said.get("is_mask_instruction", True) and said.get("padding_side", "right") == "right")


def transformer_arguments(folder: ModelFolder) -> dict[str, Any]:
    """What transformers' loader wants to know beside the folder: the configuration, and what its tensors are called."""
    if TYPE not in folder.config:
        return {}
    from transformers import MistralConfig

    own = {name: value for name, value in folder.config.items() if name not in (TYPE, "architectures")}
    return {"config": MistralConfig.from_dict(own), "key_mapping": {r"^embedding_model\.": ""}}
