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
