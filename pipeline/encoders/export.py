"""A model's folder → one ONNX graph: input_ids, attention_mask int64[n, length] → vectors float32[n, dims]."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.encoders.folder import ModelFolder
from pipeline.encoders.head import append_head
from pipeline.errors import EncoderError

if TYPE_CHECKING:
    import torch

INPUTS = ("input_ids", "attention_mask")
# From 23 on there is an Attention operator, and scaled dot-product attention becomes one node of it.
_OPSET = 23
_STATES = ("last_hidden_state", "token_embeddings", "hidden_states")


def load_reference(folder: ModelFolder) -> Any:  # noqa: ANN401 - a SentenceTransformer; its types are not followed
    """The model as sentence-transformers runs it: fp32, on the CPU, in evaluation mode, no code of its own."""
    with quiet():
        import torch
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(
                str(folder.root),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": torch.float32, "use_safetensors": True, "attn_implementation": "sdpa"},
            ).eval()
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
            raise EncoderError(
                f"the model in {folder.root} cannot be loaded: {str(error).strip().splitlines()[0]}",
                "A model that sentence-transformers can load",
                "Fetch the model again, or choose another",
            ) from error


def run_reference(model: Any, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:  # noqa: ANN401
    """float32[n, dims] out of the whole sentence-transformers model, its own pooling included."""
    import torch

    features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    with torch.inference_mode():
        vectors: NDArray[np.float32] = model(features)["sentence_embedding"].float().numpy()
    return vectors


def export_torch(folder: ModelFolder, reference: Any) -> onnx.ModelProto:  # noqa: ANN401
    """Export the transformer of a loaded model with torch's dynamo exporter and write the head behind it."""
    body = _export_body(reference[0].auto_model, folder)
    append_head(body, "token_embeddings", folder.head)
    return body


def _export_body(transformer: Any, folder: ModelFolder) -> onnx.ModelProto:  # noqa: ANN401
    """token_embeddings float32[n, length, hidden]; both dimensions of the inputs stay free."""
    import torch

    class States(torch.nn.Module):
        """The transformer with two inputs and one output; token type ids are zeros made inside."""

        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.transformer(input_ids=input_ids, attention_mask=attention_mask)[0]
            return states

    ids = torch.randint(folder.pad_id + 1, folder.pad_id + 100, (3, 11))
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
                output_names=["token_embeddings"],
                dynamic_shapes={name: shape for name in INPUTS},
                verbose=False,
            )
        except Exception as error:
            raise EncoderError(
                f"the model in {folder.root} ({folder.config['model_type']}) cannot be exported: "
                f"{str(error).strip().splitlines()[0]}",
                "A model that torch's ONNX exporter understands",
                "Choose another model, or bring an ONNX graph of it (onnx/model.onnx)",
            ) from error
    assert program is not None, "torch.onnx.export returns a program unless it is given a file"
    model: onnx.ModelProto = program.model_proto
    return model


def load_graph(folder: ModelFolder) -> tuple[onnx.ModelProto, str]:
    """The folder's own ONNX graph and the name of its token states float[n, length, hidden].

    Token type ids become zeros inside the graph. Raises EncoderError for a graph with other inputs or outputs.
    """
    try:
        model = onnx.load(str(folder.weights[0]))
    except Exception as error:  # noqa: BLE001 - protobuf's errors have no common public type
        raise EncoderError(
            f"{folder.weights[0]} cannot be read: {error}", "An ONNX graph", "Fetch it again"
        ) from None
    inputs = {value.name for value in model.graph.input} - {value.name for value in model.graph.initializer}
    outputs = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.output}
    states = next((name for name in _STATES if name in outputs), None)
    if inputs - {*INPUTS, "token_type_ids"} or not inputs >= set(INPUTS) or states is None:
        raise EncoderError(
            f"{folder.weights[0]} takes {', '.join(sorted(inputs))} and gives {', '.join(outputs)}",
            f"Inputs {', '.join(INPUTS)} (token_type_ids may follow), an output named {' or '.join(_STATES[:2])}",
            "Export it again for the task of feature extraction",
        )
    if "token_type_ids" in inputs:
        _zero_token_types(model)
    return model, states


def _zero_token_types(model: onnx.ModelProto) -> None:
    """Make token_type_ids a value of the graph, zeros shaped like input_ids, instead of an input."""
    kept = [value for value in model.graph.input if value.name != "token_type_ids"]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    zero = numpy_helper.from_array(np.zeros(1, dtype=np.int64))
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["head.ids_shape"], name="head.ids_shape"),
        helper.make_node(
            "ConstantOfShape", ["head.ids_shape"], ["token_type_ids"], name="head.types", value=zero
        ),
        *model.graph.node,
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def save_graph(model: onnx.ModelProto, file: Path) -> None:
    """Write a graph; weights that do not fit one protobuf file (2 GB) go beside it."""
    large = model.ByteSize() > 1 << 30
    onnx.save(model, str(file), save_as_external_data=large, location=f"{file.name}.data" if large else None)


def convert_tokenizer(folder: ModelFolder, file: Path) -> None:
    """Write tokenizer.json from vocabulary files, by transformers' own conversion."""
    with quiet():
        from transformers import AutoTokenizer

        try:
            AutoTokenizer.from_pretrained(
                str(folder.transformer), local_files_only=True, trust_remote_code=False
            ).backend_tokenizer.save(str(file))
        except (OSError, ValueError, ImportError, AttributeError, KeyError, TypeError) as error:
            raise EncoderError(
                f"no tokenizer.json in {folder.transformer}, and it cannot be made from {folder.tokenizer[0].name}: "
                f"{str(error).strip().splitlines()[0]}",
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
