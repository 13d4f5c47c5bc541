"""A transformer → one ONNX graph: input_ids, attention_mask int64[n, length] → states float32[n, length, hidden]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.encoders.decoders.wording import Wording
from pipeline.encoders.elastic import keep_layers, layers_in
from pipeline.encoders.folder import ModelFolder
from pipeline.encoders.head import INPUTS
from pipeline.encoders.long import LEARNED
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
    folder: ModelFolder, spec: EncoderSpec, inputs: Inputs, wording: Wording | None
) -> tuple[onnx.ModelProto, Sequence[str], list[NDArray[np.floating]]]:
    """The transformer's graph, the names of its token states, and the vectors of these inputs by the model itself.

    `wording` is what goes around a language model's texts. States are those of the last layer, or, where the model's
    pooling takes all of them, those of each, in order.
    """
    stock = load_stock(folder, spec, wording)
    reference = stock_vectors(stock, folder, spec, inputs)
    start = _change(stock.transformer, folder, spec, wording.slot if wording else -1)
    every = folder.head.trained is not None and folder.head.trained.kind == "multi-layer"
    graph = _export_body(stock.transformer, folder, start, every)
    return graph, [value.name for value in graph.graph.output], reference


def _keep_states(transformer: Any) -> list[torch.Tensor]:  # noqa: ANN401 - a transformers model
    """A list to which each forward pass adds what comes out of the layers."""
    kept: list[torch.Tensor] = []

    def keep(
        _layer: torch.nn.Module, _inputs: object, found: torch.Tensor | tuple[torch.Tensor, ...]
    ) -> None:
        kept.append(found[0] if isinstance(found, tuple) else found)

    for layer in layers_in(transformer):
        layer.register_forward_hook(keep)
    return kept


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

    if spec.long.extension in LEARNED:
        return extend(transformer, spec.long, read_positions(folder).offset, spec.max_tokens).start
    return extend_rotary(transformer, spec.long, spec.max_tokens).start


def _export_body(
    transformer: Any,  # noqa: ANN401 - a transformers model
    folder: ModelFolder,
    start: Start,
    every_layer: bool,
) -> onnx.ModelProto:
    """Token states float32[n, length, hidden] of the last layer, or each; both dimensions of the inputs stay free."""
    import torch

    kept = _keep_states(transformer) if every_layer else []

    class States(torch.nn.Module):
        """The transformer with two inputs; token type ids are zeros made inside."""

        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            kept.clear()
            mask = start(input_ids, attention_mask)
            last: torch.Tensor = self.transformer(input_ids=input_ids, attention_mask=mask)[0]
            return *kept[:-1], last  # behind the last layer comes the final norm

    ids = torch.arange(33).reshape(3, 11)
    mask = torch.ones_like(ids)
    ids[1, 7:], mask[1, 7:] = folder.pad_id, 0
    layers = len(layers_in(transformer)) if every_layer else 1
    names = [_STATES, *(f"{_STATES}.{layer}" for layer in range(2, layers + 1))]
    with quiet(), torch.inference_mode():
        try:
            # a fresh wrapper is in training mode, and export would leave dropout on
            return _to_onnx(States().eval(), (ids, mask), names)
        except Exception as error:
            raise EncoderError(
                f"the model in {folder.root} ({folder.config['model_type']}) cannot be exported: {first_line(error)}",
                "A model that torch's ONNX exporter understands",
                "Choose another model, or bring an ONNX graph of it (onnx/model.onnx)",
            ) from error


def _to_onnx(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, torch.Tensor], names: Sequence[str]
) -> onnx.ModelProto:
    import onnxscript.optimizer
    import torch

    shape = {0: "batch", 1: "length"}
    program = torch.onnx.export(
        module,
        inputs,
        dynamo=True,
        opset_version=_OPSET,
        input_names=list(INPUTS),
        output_names=list(names),
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
