"""A transformer → one ONNX graph: input_ids, attention_mask int64[n, length] → states float32[n, length, hidden]."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.encoders.elastic import keep_layers
from pipeline.encoders.folder import ModelFolder
from pipeline.encoders.head import INPUTS
from pipeline.encoders.parity import Inputs
from pipeline.encoders.positions import read_positions
from pipeline.encoders.spec import EncoderSpec
from pipeline.encoders.stock import load_stock, quiet, stock_vectors
from pipeline.errors import EncoderError, first_line

if TYPE_CHECKING:
    import torch

# From 23 on there is an Attention operator, and scaled dot-product attention becomes one node of it.
_OPSET = 23
_STATES = "token_embeddings"

Start = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""What is done first with a batch's ids and mask int64[n, length]; it gives the mask for the transformer."""


def from_torch(
    folder: ModelFolder, spec: EncoderSpec, inputs: Inputs, slot: int
) -> tuple[onnx.ModelProto, str, list[NDArray[np.floating]]]:
    """The transformer's graph, the name of its token states, and the vectors of these inputs by the model itself.

    `slot` is the id of the token that a prompt leaves for its last one's state, -1 for none.
    """
    stock = load_stock(folder, spec, slot)
    reference = stock_vectors(stock, folder, spec, inputs)
    start = _change(stock.transformer, folder, spec, slot)
    return _export_body(stock.transformer, folder, start), _STATES, reference


def _change(transformer: Any, folder: ModelFolder, spec: EncoderSpec, slot: int) -> Start:  # noqa: ANN401
    """Make a transformer what the spec says, in place: texts beyond its window, layers that do not run, prepending."""
    extend = _extend(transformer, folder, spec)
    if spec.decoder:
        from pipeline.encoders.decoders.prepending import shorten

        slots = shorten(transformer, spec.decoder, slot)

        def start(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            extend(ids, mask)
            return slots.start(ids, mask)

        return start
    if spec.layers:
        keep_layers(transformer, spec.layers)
    return extend


def _extend(transformer: Any, folder: ModelFolder, spec: EncoderSpec) -> Start:  # noqa: ANN401
    if not spec.long or not spec.long.by_length:
        return lambda _ids, mask: mask
    from pipeline.encoders.extended import extend
    from pipeline.encoders.selfextend import extend_rotary

    if spec.long.by_table:
        return extend(transformer, spec.long, read_positions(folder).offset, spec.max_tokens).start
    return extend_rotary(transformer, spec.long, spec.max_tokens).start


def _export_body(transformer: Any, folder: ModelFolder, start: Start) -> onnx.ModelProto:  # noqa: ANN401
    """token_embeddings float32[n, length, hidden]; both dimensions of the inputs stay free."""
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
    with quiet(), torch.inference_mode():
        try:
            # a fresh wrapper is in training mode, and export would leave dropout on
            return _to_onnx(States().eval(), (ids, mask))
        except Exception as error:
            raise EncoderError(
                f"the model in {folder.root} ({folder.config['model_type']}) cannot be exported: {first_line(error)}",
                "A model that torch's ONNX exporter understands",
                "Choose another model, or bring an ONNX graph of it (onnx/model.onnx)",
            ) from error


def _to_onnx(module: torch.nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> onnx.ModelProto:
    import onnxscript.optimizer
    import torch

    shape = {0: "batch", 1: "length"}
    program = torch.onnx.export(
        module,
        inputs,
        dynamo=True,
        opset_version=_OPSET,
        input_names=list(INPUTS),
        output_names=[_STATES],
        dynamic_shapes={name: shape for name in INPUTS},
        verbose=False,
        optimize=False,  # its fusion of rotary embeddings fails for batches of more than one row
    )
    assert program is not None, "torch.onnx.export returns a program unless it is given a file"
    onnxscript.optimizer.fold_constants(program.model)  # weights become initializers again, transposed once
    onnxscript.optimizer.remove_unused_nodes(program.model)
    model: onnx.ModelProto = program.model_proto
    return model


def save_graph(model: onnx.ModelProto, file: Path) -> None:
    """Write a graph; weights that do not fit one protobuf file (2 GB) go beside it."""
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > 1 << 30
    onnx.save(model, str(file), save_as_external_data=large, location=f"{file.name}.data" if large else None)
