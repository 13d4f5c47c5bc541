"""Several exits of one model in one graph: what their graphs have in common is there once, and is computed once.

Each exit has a graph of its own, behind its own gate. Put together, values that come from equal nodes, equal weights
and equal inputs are one value: the layers that two exits share, whatever precision or method they were exported with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import helper

from pipeline.encoders.exported import OUTPUT, exit_output
from pipeline.encoders.exporting import save_graph
from pipeline.encoders.parity import Figures, Inputs, check_parity
from pipeline.encoders.prepare import as_run
from pipeline.encoders.runtime import open_session
from pipeline.errors import EncoderError


def merge_graphs(files: Sequence[Path], file: Path, inputs: Inputs) -> dict[str, Figures]:
    """Write the graphs in `files` as one with an output for each to `file`, behind a gate.

    Raises ParityError unless each output is what its own graph gives, whatever the precision of both.
    """
    merged = _Merged()
    for place, each in enumerate(files):
        merged.add(onnx.load(str(each)), exit_output(place))
    save_graph(merged.model, file)
    figures: dict[str, Figures] = {}
    for place, each in enumerate(files):
        alone = as_run(open_session(each, "cpu"))
        reference = [alone(ids, mask) for ids, mask in inputs]
        for name, optimise in (("exported", False), ("optimised", True)):
            run = as_run(open_session(file, "cpu", optimise=optimise), (exit_output(place),))
            what = f"the {name} graph at exit {place}"
            figures[f"{name}.{place}"] = check_parity(what, "fp32", reference, run, inputs)
    return figures


class _Merged:
    """A graph that others are added to."""

    def __init__(self) -> None:
        self.model = onnx.ModelProto()
        self._graphs = 0
        # The names of the values of a weight or a node by its fingerprint, and a value's fingerprint by its name.
        self._known: dict[str, list[str]] = {}
        self._prints: dict[str, str] = {}

    def add(self, model: onnx.ModelProto, output: str) -> None:
        """Add what another graph has that is not there yet; its vectors become the output of this name."""
        if not self._graphs:
            self.model.CopyFrom(model)
            for field in ("node", "initializer", "output", "value_info"):
                self.model.graph.ClearField(field)
            self._prints |= {value.name: value.name for value in model.graph.input}
        names = {value.name: value.name for value in model.graph.input}
        for tensor in model.graph.initializer:
            name = tensor.name
            names[name] = self._weight(tensor)
        for node in model.graph.node:
            self._node(node, names)
        self._graphs += 1
        self.model.graph.node.append(helper.make_node("Identity", [names[OUTPUT]], [output], name=output))
        (vectors,) = [value for value in model.graph.output if value.name == OUTPUT]
        vectors.name = output
        self.model.graph.output.append(vectors)

    def _weight(self, tensor: onnx.TensorProto) -> str:
        """The name of an equal weight."""
        name = tensor.name
        tensor.name = ""
        found = hashlib.sha256(tensor.SerializeToString(deterministic=True)).hexdigest()
        if found not in self._known:
            tensor.name = self._fresh(name)
            self.model.graph.initializer.append(tensor)
            self._learn(found, [tensor.name])
        return self._known[found][0]

    def _node(self, node: onnx.NodeProto, names: dict[str, str]) -> None:
        """Let the outputs of a node be those of an equal one; `names` says what its values are called here."""
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise EncoderError(
                "a graph with branches or loops",
                "A plain graph, to give the vectors of several exits",
                "Leave out aspects with layers",
            )
        inputs = [names[name] if name else "" for name in node.input]
        said = [node.domain, node.op_type, *(self._prints[name] if name else "" for name in inputs)]
        said += sorted(a.SerializeToString(deterministic=True).hex() for a in node.attribute)
        found = hashlib.sha256("\n".join([*said, str(len(node.output))]).encode()).hexdigest()
        outputs = list(node.output)
        if found not in self._known:
            own = onnx.NodeProto()
            own.CopyFrom(node)
            own.input[:] = inputs
            own.output[:] = [self._fresh(name) if name else "" for name in outputs]
            own.name = self._fresh(node.name) if node.name else ""  # some have none
            self.model.graph.node.append(own)
            self._learn(found, list(own.output))
        names |= dict(zip(outputs, self._known[found], strict=True))

    def _learn(self, found: str, names: list[str]) -> None:
        self._known[found] = names
        self._prints |= {name: f"{found}.{place}" for place, name in enumerate(names)}

    def _fresh(self, name: str) -> str:
        """A name that no other graph's value has, and no output."""
        return f"exit{self._graphs}.{name}"
