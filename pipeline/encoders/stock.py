"""A model as its libraries run it, what a graph is made of and held to: fp32, on the CPU, without code of its own.

Encoders are run by sentence-transformers, pooling and all that follows included; language models by transformers, and
pooled by numpy.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.decoders.gguf import loadable
from pipeline.encoders.decoders.spec import DecoderSpec
from pipeline.encoders.decoders.wording import Wording
from pipeline.encoders.elastic import slice_vectors
from pipeline.encoders.folder import ModelFolder
from pipeline.encoders.long import LEARNED, NTK, SELF_EXTEND, LongSpec
from pipeline.encoders.parity import Inputs, Run
from pipeline.encoders.positions import read_positions
from pipeline.encoders.spec import EncoderSpec
from pipeline.errors import EncoderError, first_line


@dataclass(frozen=True, eq=False)
class Stock:
    """A loaded model.

    transformer: the transformers model inside, its types not followed.
    vectors: what the whole model makes of a batch, float32[n, dims] before any slice.
    """

    transformer: Any
    vectors: Run


def load_stock(folder: ModelFolder, spec: EncoderSpec, wording: Wording | None) -> Stock:
    """Load a model, with other rotary angles where the spec asks for them.

    `wording` is what goes around a language model's texts. Raises EncoderError for a model that cannot be loaded, or
    not with those angles.
    """
    with quiet():
        if spec.decoder and wording:
            stock = _load_decoder(folder, spec.decoder, wording)
        else:
            stock = _load_encoder(folder, spec.layers)
    _change_angles(stock.transformer, spec.long)
    return stock


def stock_vectors(
    stock: Stock, folder: ModelFolder, spec: EncoderSpec, inputs: Inputs
) -> list[NDArray[np.floating]]:
    """The vectors of these inputs by the model itself, float[n, dims] each."""
    long = spec.long if spec.long and spec.long.by_length else None
    run = _each_alone(stock, folder, long) if long else stock.vectors
    return [slice_vectors(run(ids, mask), folder.head) for ids, mask in inputs]


def _each_alone(stock: Stock, folder: ModelFolder, long: LongSpec) -> Run:
    """Each row by itself and without padding, on positions made for its length: what no batch can change."""

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.floating]:
        found = []
        for row, kept in zip(ids, mask > 0, strict=True):
            alone = row[None, kept]
            with _positioned(stock.transformer, folder, long, alone.shape[1]):
                found.append(stock.vectors(alone, np.ones_like(alone)))
        return np.concatenate(found)

    return run


def _positioned(
    transformer: Any,  # noqa: ANN401 - a transformers model
    folder: ModelFolder,
    long: LongSpec,
    tokens: int,
) -> AbstractContextManager[None]:
    """The model as it takes one text of so many tokens."""
    from pipeline.encoders.extended import positioned
    from pipeline.encoders.selfextend import positioned_rotary

    if long.extension in LEARNED:
        return positioned(transformer, long, read_positions(folder).offset, tokens)
    return positioned_rotary(transformer, long, tokens)


def _change_angles(transformer: Any, long: LongSpec | None) -> None:  # noqa: ANN401 - a transformers model
    from pipeline.encoders.rotary import check_base, slow_down

    if long and long.extension == NTK:
        slow_down(transformer, long.factor)
    if long and long.extension == SELF_EXTEND:
        from pipeline.encoders.selfextend import see_all

        check_base(transformer)
        see_all(transformer, long.window)


def _load_decoder(folder: ModelFolder, decoder: DecoderSpec, wording: Wording) -> Stock:
    from pipeline.encoders.decoders import reference
    from pipeline.encoders.decoders.loading import load_decoder

    transformer, head = load_decoder(folder), folder.head
    unit = "normalize" in head.layers
    weights = reference.Weights.load(head.trained) if head.trained else None

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.floating]:
        if weights:
            return reference.trained_vectors(transformer, decoder, wording.left_out, weights, ids, mask, unit)
        return reference.vectors(transformer, decoder, wording.slot, ids, mask, unit)

    return Stock(transformer, run)


def _load_encoder(folder: ModelFolder, layers: int) -> Stock:
    """Run by sentence-transformers, out of the first `layers`, 0 for all.

    The model's own normalisation at the end goes where the folder's head has none: a space's map comes before that.
    """
    import torch
    from sentence_transformers.sentence_transformer.modules import Normalize

    model = _sentence_transformer(folder)
    if "normalize" not in folder.head.layers[-1:] and isinstance(model[-1], Normalize):
        del model[-1]
    transformer = model[0].auto_model

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.floating]:
        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        with torch.inference_mode():
            if layers:
                states = transformer(**features, output_hidden_states=True).hidden_states[layers]
                features["token_embeddings"] = states
                for module in list(model)[1:]:
                    features = module(features)
            else:
                features = model(features)
        vectors: NDArray[np.float32] = features["sentence_embedding"].float().numpy()
        return vectors

    return Stock(transformer, run)


def _sentence_transformer(folder: ModelFolder) -> Any:  # noqa: ANN401 - its types are not followed
    """The model in evaluation mode."""
    import torch
    from sentence_transformers import SentenceTransformer

    if folder.language_model:
        from pipeline.encoders.decoders.loading import load_decoder

        load_decoder(folder)  # it refuses to draw missing tensors at random, as sentence-transformers would
    try:
        return SentenceTransformer(
            str(folder.root),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": torch.float32, "use_safetensors": True},
        ).eval()
    except Exception as error:
        raise EncoderError(
            f"the model in {folder.root} cannot be loaded: {first_line(error)}",
            "A model that sentence-transformers can load",
            "Fetch the model again, or choose another",
        ) from error


def convert_tokenizer(folder: ModelFolder, file: Path) -> None:
    """Write tokenizer.json from vocabulary files, by transformers' own conversion."""
    with quiet():
        from transformers import AutoTokenizer

        try:
            with loadable(folder) as (root, reader):
                AutoTokenizer.from_pretrained(
                    root, local_files_only=True, trust_remote_code=False, **reader
                ).backend_tokenizer.save(str(file))
        except (OSError, ValueError, ImportError, AttributeError, KeyError, TypeError) as error:
            raise EncoderError(
                f"no tokenizer.json in {folder.transformer}, and it cannot be made from {folder.tokenizer[0].name}: "
                f"{first_line(error)}",
                "tokenizer.json, or vocabulary files that transformers can convert",
                "Save the tokenizer again: AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER)",
            ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the loader's and the exporter's progress bars, log lines and warnings off the terminal."""
    from transformers.utils import logging as transformers_logging

    loggers = [
        logging.getLogger(name) for name in ("torch", "transformers", "sentence_transformers", "onnxscript")
    ]
    levels = [logger.level for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
