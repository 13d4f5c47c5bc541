"""A model's folder → one ONNX graph: input_ids, attention_mask int64[n, length] → vectors float32[n, dims]."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.encoders.decoders.gguf import gguf_file
from pipeline.encoders.decoders.spec import DecoderSpec
from pipeline.encoders.elastic import keep_layers, slice_vectors
from pipeline.encoders.folder import ModelFolder
from pipeline.encoders.head import INPUTS
from pipeline.encoders.long import NTK, SELF_EXTEND, LongSpec
from pipeline.encoders.parity import Inputs
from pipeline.encoders.positions import read_positions
from pipeline.encoders.spec import EncoderSpec
from pipeline.errors import EncoderError

if TYPE_CHECKING:
    import torch

# From 23 on there is an Attention operator, and scaled dot-product attention becomes one node of it.
_OPSET = 23
_STATES = "token_embeddings"


def from_torch(
    folder: ModelFolder, spec: EncoderSpec, inputs: Inputs, slot: int
) -> tuple[onnx.ModelProto, str, list[NDArray[np.floating]]]:
    """The transformer's graph, the name of its token states, and the vectors of these inputs by the model itself.

    `slot` is the id of the token that a prompt leaves for its last one's state, -1 for none.
    """
    if spec.decoder:
        return _from_decoder(folder, spec, spec.decoder, inputs, slot)
    model = _load(folder, spec)
    reference = _vectors(model, folder, spec, inputs)
    transformer = model[0].auto_model
    start = _extend(transformer, folder, spec)
    if spec.layers:
        keep_layers(transformer, spec.layers)
    return _export_body(transformer, folder, start), _STATES, reference


def _extend(transformer: Any, folder: ModelFolder, spec: EncoderSpec) -> Start:  # noqa: ANN401
    """Make a transformer take texts beyond its window, in place."""
    if not spec.long or not spec.long.by_length:
        return _keep_mask
    from pipeline.encoders.extended import extend
    from pipeline.encoders.selfextend import extend_rotary

    if spec.long.by_table:
        return extend(transformer, spec.long, read_positions(folder).offset, spec.max_tokens).start
    return extend_rotary(transformer, spec.long, spec.max_tokens).start


def _from_decoder(
    folder: ModelFolder, spec: EncoderSpec, decoder: DecoderSpec, inputs: Inputs, slot: int
) -> tuple[onnx.ModelProto, str, list[NDArray[np.floating]]]:
    """The same of a language model."""
    from pipeline.encoders.decoders.prepending import shorten

    transformer = _load_decoder(folder, spec)
    reference = _decoder_vectors(transformer, folder, spec, decoder, inputs, slot)
    extend, places = _extend(transformer, folder, spec), shorten(transformer, decoder, slot)

    def start(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        extend(ids, mask)
        return places.start(ids, mask)

    return _export_body(transformer, folder, start), _STATES, reference


def _load_decoder(folder: ModelFolder, spec: EncoderSpec) -> Any:  # noqa: ANN401 - a transformers model
    from pipeline.encoders.decoders.loading import load_decoder

    with quiet():
        transformer = load_decoder(folder)
    _change_angles(transformer, spec)
    return transformer


def _decoder_vectors(
    transformer: Any,  # noqa: ANN401
    folder: ModelFolder,
    spec: EncoderSpec,
    decoder: DecoderSpec,
    inputs: Inputs,
    slot: int,
) -> list[NDArray[np.floating]]:
    from pipeline.encoders.decoders import reference
    from pipeline.encoders.selfextend import positioned_rotary

    vectors = partial(reference.vectors, unit="normalize" in folder.head.layers)

    def by_length(long: LongSpec, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Each row alone, without its padding."""
        found = []
        for row, kept in zip(ids, mask > 0, strict=True):
            alone = row[None, kept]
            with positioned_rotary(transformer, long, alone.shape[1]):
                found.append(vectors(transformer, decoder, slot, alone, np.ones_like(alone)))
        return np.concatenate(found)

    long = spec.long if spec.long and spec.long.by_length else None
    found = (
        by_length(long, ids, mask) if long else vectors(transformer, decoder, slot, ids, mask)
        for ids, mask in inputs
    )
    return [slice_vectors(each, folder.head) for each in found]


def by_torch(folder: ModelFolder, spec: EncoderSpec, inputs: Inputs, slot: int) -> list[NDArray[np.floating]]:
    """The vectors of these inputs by the model itself: by sentence-transformers with its own pooling, or by hooks."""
    if spec.decoder:
        return _decoder_vectors(_load_decoder(folder, spec), folder, spec, spec.decoder, inputs, slot)
    return _vectors(_load(folder, spec), folder, spec, inputs)


def _vectors(
    model: Any,  # noqa: ANN401 - a SentenceTransformer; its types are not followed
    folder: ModelFolder,
    spec: EncoderSpec,
    inputs: Inputs,
) -> list[NDArray[np.floating]]:
    run = _run_alone if spec.long and spec.long.by_length else _run
    return [slice_vectors(run(model, folder, spec, ids, mask), folder.head) for ids, mask in inputs]


def _run_alone(
    model: Any,  # noqa: ANN401
    folder: ModelFolder,
    spec: EncoderSpec,
    ids: NDArray[np.int64],
    mask: NDArray[np.int64],
) -> NDArray[np.float32]:
    """float32[n, dims], each row run alone and without padding, on positions made for its length."""
    from pipeline.encoders.extended import positioned
    from pipeline.encoders.selfextend import positioned_rotary

    assert spec.long is not None
    transformer, vectors = model[0].auto_model, []
    for row, tokens in zip(ids, mask.sum(axis=1).tolist(), strict=True):
        with (
            positioned(transformer, spec.long, read_positions(folder).offset, tokens)
            if spec.long.by_table
            else positioned_rotary(transformer, spec.long, tokens)
        ):
            alone = row[None, :tokens]
            vectors.append(_run(model, folder, spec, alone, np.ones_like(alone))[0])
    return np.stack(vectors)


def _load(folder: ModelFolder, spec: EncoderSpec) -> Any:  # noqa: ANN401 - a SentenceTransformer
    """The model as sentence-transformers runs it, with other angles where the spec asks for them.

    Its own normalisation at the end goes where the folder's head has none: a space's map comes before that.
    """
    from sentence_transformers.sentence_transformer.modules import Normalize

    model = _load_plain(folder)
    if "normalize" not in folder.head.layers[-1:] and isinstance(model[-1], Normalize):
        del model[-1]
    _change_angles(model[0].auto_model, spec)
    return model


def _change_angles(transformer: Any, spec: EncoderSpec) -> None:  # noqa: ANN401 - a transformers model
    from pipeline.encoders.rotary import check_base, slow_down

    if spec.long and spec.long.method == NTK:
        slow_down(transformer, spec.long.factor)
    if spec.long and spec.long.method == SELF_EXTEND:
        from pipeline.encoders.selfextend import see_all

        check_base(transformer)
        see_all(transformer)


def _load_plain(folder: ModelFolder) -> Any:  # noqa: ANN401 - a SentenceTransformer; its types are not followed
    """fp32, on the CPU, in evaluation mode, no code of its own."""
    if str((folder.config.get("architectures") or [""])[0]).endswith("ForCausalLM"):
        from pipeline.encoders.decoders.loading import load_decoder

        load_decoder(folder)  # it refuses to draw missing tensors at random, as sentence-transformers would
    with quiet():
        import torch
        from sentence_transformers import SentenceTransformer

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
                f"the model in {folder.root} cannot be loaded: {_first_line(error)}",
                "A model that sentence-transformers can load",
                "Fetch the model again, or choose another",
            ) from error


def _run(
    model: Any,  # noqa: ANN401
    _folder: ModelFolder,
    spec: EncoderSpec,
    ids: NDArray[np.int64],
    mask: NDArray[np.int64],
) -> NDArray[np.float32]:
    """float32[n, dims] out of the whole sentence-transformers model, its own pooling included."""
    import torch

    features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    with torch.inference_mode():
        if spec.layers:
            states = model[0].auto_model(**features, output_hidden_states=True).hidden_states[spec.layers]
            features["token_embeddings"] = states
            for module in list(model)[1:]:
                features = module(features)
        else:
            features = model(features)
    vectors: NDArray[np.float32] = features["sentence_embedding"].float().numpy()
    return vectors


Start = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""What is done first with a batch's ids and mask int64[n, length]; it gives the mask for the transformer."""


def _keep_mask(_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return mask


def _export_body(transformer: Any, folder: ModelFolder, start: Start) -> onnx.ModelProto:  # noqa: ANN401
    """token_embeddings float32[n, length, hidden]; both dimensions of the inputs stay free."""
    import onnxscript.optimizer
    import torch

    class States(torch.nn.Module):
        """The transformer with two inputs and one output; token type ids are zeros made inside."""

        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            mask = start(input_ids, attention_mask)
            states: torch.Tensor = self.transformer(input_ids=input_ids, attention_mask=mask)[0]
            return states

    ids = torch.arange(33).reshape(3, 11)
    mask = torch.ones_like(ids)
    ids[1, 7:], mask[1, 7:] = folder.pad_id, 0
    shape = {0: "batch", 1: "length"}
    with quiet(), torch.inference_mode():
        try:
            program = torch.onnx.export(
                States().eval(),  # a fresh wrapper is in training mode, and export would leave dropout on
                (ids, mask),
                dynamo=True,
                opset_version=_OPSET,
                input_names=list(INPUTS),
                output_names=[_STATES],
                dynamic_shapes={name: shape for name in INPUTS},
                verbose=False,
                optimize=False,  # its fusion of rotary embeddings fails for batches of more than one row
            )
        except Exception as error:
            raise EncoderError(
                f"the model in {folder.root} ({folder.config['model_type']}) cannot be exported: "
                f"{_first_line(error)}",
                "A model that torch's ONNX exporter understands",
                "Choose another model, or bring an ONNX graph of it (onnx/model.onnx)",
            ) from error
        assert program is not None, "torch.onnx.export returns a program unless it is given a file"
        onnxscript.optimizer.fold_constants(
            program.model
        )  # weights become initializers again, transposed once
        onnxscript.optimizer.remove_unused_nodes(program.model)
    model: onnx.ModelProto = program.model_proto
    return model


def _first_line(error: Exception) -> str:
    """What an error says first; the type's name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def save_graph(model: onnx.ModelProto, file: Path) -> None:
    """Write a graph; weights that do not fit one protobuf file (2 GB) go beside it."""
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > 1 << 30
    onnx.save(model, str(file), save_as_external_data=large, location=f"{file.name}.data" if large else None)


def convert_tokenizer(folder: ModelFolder, file: Path) -> None:
    """Write tokenizer.json from vocabulary files, by transformers' own conversion."""
    with quiet():
        from transformers import AutoTokenizer

        try:
            AutoTokenizer.from_pretrained(
                str(folder.transformer), local_files_only=True, trust_remote_code=False, **gguf_file(folder)
            ).backend_tokenizer.save(str(file))
        except (OSError, ValueError, ImportError, AttributeError, KeyError, TypeError) as error:
            raise EncoderError(
                f"no tokenizer.json in {folder.transformer}, and it cannot be made from {folder.tokenizer[0].name}: "
                f"{_first_line(error)}",
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
