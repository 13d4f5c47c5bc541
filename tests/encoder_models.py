"""Tiny models of several architectures and folders of settings without weights, for the encoders' tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import models

WIDTH = 32


def settings_folder(folder: Path, **changes: Any) -> Path:
    """A sentence-transformers folder as far as `describe` reads it: settings, a vocabulary, four bytes of weights.

    `changes` replace or add files by their path, `"1_Pooling/config.json"={…}`; None leaves a file out.
    """
    files: dict[str, Any] = {
        "config.json": {
            "model_type": "bert",
            "hidden_size": 384,
            "max_position_embeddings": 512,
            "vocab_size": 9,
            "pad_token_id": 0,
        },
        "modules.json": modules("", "Transformer", "1_Pooling", "Pooling", "2_Normalize", "Normalize"),
        "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True},
        "tokenizer.json": {
            "truncation": {"max_length": 128},
            "padding": None,
            "normalizer": None,
            "model": {},
        },
        "model.safetensors": b"data",
    } | changes
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:
            file.write_text(json.dumps(content))
    return folder


def modules(*pairs: str) -> list[dict[str, Any]]:
    """modules.json out of path, kind, path, kind, …"""
    return [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(zip(pairs[::2], pairs[1::2], strict=True))
    ]


def tiny(folder: Path, architecture: str, pooling: str) -> Path:
    """A two-layer model with random weights and MiniLM's vocabulary."""
    import torch
    import transformers

    models.tiny_bert(folder, dims=WIDTH)
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**_shape(architecture))
    getattr(transformers, f"{architecture}Model")(config).eval().save_pretrained(folder)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": WIDTH, "pooling_mode": pooling})
    )
    return folder


def _shape(architecture: str) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "vocab_size": 30522,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 130,
        "initializer_range": 0.3,
        "pad_token_id": 1 if architecture in ("MPNet", "Roberta") else 0,
    }
    specials = {"bos_token_id": 101, "eos_token_id": 102}
    if architecture == "Qwen3":
        shape |= {"num_key_value_heads": 1, "head_dim": 16, **specials}
    if architecture == "ModernBert":
        shape |= {"local_attention": 8, "cls_token_id": 101, "sep_token_id": 102, **specials}
    return shape


def tiny_decoder(folder: Path, **changes: Any) -> Path:
    """A four-layer Llama with random weights as its checkpoint lies in a folder, and MiniLM's vocabulary.

    `changes` are settings of its configuration.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    shape = _shape("Llama") | {
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "max_position_embeddings": 96,
    }
    config = transformers.LlamaConfig(**shape, bos_token_id=101, eos_token_id=102, **changes)
    transformers.LlamaForCausalLM(config).eval().save_pretrained(folder)
    shutil.copy(models.package_folder() / "tokenizer.json", folder / "tokenizer.json")
    return folder


def tiny_nvembed(folder: Path, latents: int = 6, heads: int = 2, width: int = 5) -> Path:
    """An NV-Embed checkpoint as it is saved: two layers, random weights in bfloat16, two files, code that is missing.

    Its window of four tokens and its base of rotary angles show whether its settings are taken as they are meant.
    """
    import torch
    import transformers
    from safetensors.torch import save_file

    shape = _shape("Qwen3") | {"rope_theta": 500.0, "sliding_window": 4, "eos_token_id": 1011}
    torch.manual_seed(0)
    transformer = transformers.MistralModel(transformers.MistralConfig.from_dict(shape))
    settings = transformer.config.to_dict() | shape | {"model_type": "bidir_mistral"}
    del settings["rope_parameters"]
    parts = {
        "embedding_model": transformer.state_dict(),
        "latent_attention_model": cross_attention(WIDTH, latents, heads * width),
    }
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    weight_map = {}
    for file, (prefix, tensors) in zip(names, parts.items(), strict=True):
        stored = {f"{prefix}.{name}": value.to(torch.bfloat16) for name, value in tensors.items()}
        save_file(stored, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(stored, file)
    pooling = {"num_latents_value": latents, "num_cross_heads": heads, "cross_dim_head": width}
    config = {
        "architectures": ["NVEmbedModel"],
        "auto_map": {"AutoModel": "modeling_nvembed.NVEmbedModel"},
        "model_type": "nvembed",
        "hidden_size": WIDTH,
        "add_eos": True,
        "is_mask_instruction": True,
        "mask_type": "b",
        "padding_side": "right",
        "latent_attention_config": {"model_type": "latent_attention", **pooling},
        "text_config": settings | {"architectures": ["MistralModel"]},
    }
    files = {
        "config.json": config,
        "model.safetensors.index.json": {"metadata": {}, "weight_map": weight_map},
        "modules.json": modules("", "Transformer", "1_Pooling", "Pooling", "2_Normalize", "Normalize"),
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "include_prompt": False},
        "tokenizer.json": _begun(json.loads((models.package_folder() / "tokenizer.json").read_text())),
    }
    return settings_folder(
        folder, **dict.fromkeys(("model.safetensors", "sentence_bert_config.json")), **files
    )


def tiny_multi_layer(folder: Path, latents: int = 3, layers: int = 5) -> Path:
    """A `tiny_decoder` with the weights of a multi-layer pooling for models of up to so many layers beside it."""
    import torch
    from safetensors.torch import save_file

    tiny_decoder(folder)
    tensors = cross_attention(WIDTH, latents, 32 * 2) | {"pos_emb.weight": torch.randn(layers, WIDTH)}
    save_file(tensors, folder / "attn_pool.safetensors")
    return folder


def cross_attention(hidden: int, latents: int, inner: int) -> dict[str, Any]:
    """The tensors of a trained pooling, under the names that both kinds have, drawn at random."""
    import torch

    torch.manual_seed(1)
    attention, feed_forward = "cross_attend_blocks.0", "cross_attend_blocks.1"
    shapes = {
        "latents": (latents, hidden),
        f"{attention}.fn.to_q.weight": (inner, hidden),
        f"{attention}.fn.to_kv.weight": (2 * inner, hidden),
        f"{attention}.fn.to_out.weight": (hidden, inner),
        f"{feed_forward}.fn.net.0.weight": (8 * hidden, hidden),
        f"{feed_forward}.fn.net.0.bias": (8 * hidden,),
        f"{feed_forward}.fn.net.2.weight": (hidden, 4 * hidden),
        f"{feed_forward}.fn.net.2.bias": (hidden,),
    }
    for norm in (f"{attention}.norm", f"{attention}.norm_context", f"{feed_forward}.norm"):
        shapes |= {f"{norm}.weight": (hidden,), f"{norm}.bias": (hidden,)}
    return {name: torch.randn(shape) * (1.0 if name == "latents" else 0.4) for name, shape in shapes.items()}


def _begun(definition: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer that puts a token before a text and none behind it, as those of most language models do."""
    template = definition["post_processor"]
    template["single"] = template["single"][:2]
    return definition


def write_gguf(checkpoint: Path, file: Path, leave_out: str = "") -> Path:
    """The weights of a `tiny_decoder` as a GGUF file, without a tokenizer; `leave_out` names a tensor."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_eos_token_id(config["eos_token_id"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        part = name.split(".")[-2]
        if part in heads:  # the format pairs neighbouring dimensions in its rotary positions
            tensor = tensor.reshape(heads[part], 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        if name != leave_out:
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
