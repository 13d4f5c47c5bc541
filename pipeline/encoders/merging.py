"""Several exits of one model in one graph: what their graphs have in common is there once, and is computed once.

Each exit has a graph of its own, behind its own gate. Put together, values that come from equal nodes, equal weights
and equal inputs are one value: the layers that two exits share, whatever precision or method they were exported with.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import EncoderConfig
from pipeline.encoders.describe import cache_folder
from pipeline.encoders.exported import (
    GRAPH,
    MANIFEST,
    OUTPUT,
    TOKENIZER,
    exit_output,
    is_whole,
    read_manifest,
)
from pipeline.encoders.hashes import hash_json, write_whole
from pipeline.encoders.parity import Figures, Inputs, check_parity
from pipeline.encoders.prepare import as_run, lock, probe
from pipeline.encoders.runtime import open_session
from pipeline.encoders.spec import EncoderSpec
from pipeline.errors import EncoderError
from pipeline.tokens import load_tokenizer

if TYPE_CHECKING:
    import onnx


def prepare_merged(specs: Sequence[EncoderSpec], folders: Sequence[Path], config: EncoderConfig) -> Path:
    """Return a folder with one graph for these encoders, made the first time of theirs in `folders`.

    Crash-safe as `prepare` is: an entry of the cache appears whole, by a rename, once it has passed the gate.
    """
    cache = cache_folder(config)
    entry = cache / hash_json(["exits", *(spec.version for spec in specs)])
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with lock(cache / f".{entry.name}.lock"):
            if not is_whole(entry):
                _build(specs, folders, entry)
    except OSError as error:
        raise EncoderError(
            f"the encoder cache {cache} cannot be written: {error}",
            f"A folder we may write, with room for the model ({specs[0].source})",
            "Set encoder.cache, or free some space",
        ) from error
    return entry


def _build(specs: Sequence[EncoderSpec], folders: Sequence[Path], entry: Path) -> None:
    """Merge into a folder beside the entry's place, pass the gate, rename."""
    building = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".building."))
    try:
        shutil.copyfile(folders[0] / TOKENIZER, building / TOKENIZER)
        first = read_manifest(folders[0])
        inputs = probe(
            load_tokenizer(building / TOKENIZER), first.get("vocabulary", 0), first.get("pad_id", 0), specs[0]
        )
        figures = merge_graphs([folder / GRAPH for folder in folders], building / GRAPH, inputs)
        manifest = {
            **first,
            "exits": [spec.version for spec in specs],
            "parity": {name: asdict(measured) for name, measured in figures.items()},
            "files": {file.name: file.stat().st_size for file in building.iterdir()},
        }
        write_whole(building / MANIFEST, [json.dumps(manifest, indent=2).encode("utf-8")])
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one
        os.chmod(building, 0o755)  # a cache may be shared; temporary folders are not
        os.rename(building, entry)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def merge_graphs(files: Sequence[Path], file: Path, inputs: Inputs) -> dict[str, Figures]:
    """Write the graphs in `files` as one with an output for each to `file`, behind a gate.

    Raises ParityError unless each output is what its own graph gives.
    """
    import onnx

    from pipeline.encoders.export import save_graph

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
        import onnx

        self._onnx = onnx
        self.model = onnx.ModelProto()
        self._graphs = 0
        self._known: dict[
            str, list[str]
        ] = {}  # the fingerprint of a weight or a node → the names of its values
        self._prints: dict[str, str] = {}  # the name of a value → its fingerprint

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
        self.model.graph.node.append(
            self._onnx.helper.make_node("Identity", [names[OUTPUT]], [output], name=output)
        )
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
            own = self._onnx.NodeProto()
            own.CopyFrom(node)
            own.input[:] = inputs
            own.output[:] = [self._fresh(name) if name else "" for name in outputs]
            own.name = self._fresh(node.name)
            self.model.graph.node.append(own)
            self._learn(found, list(own.output))
        names |= dict(zip(outputs, self._known[found], strict=True))

    def _learn(self, found: str, names: list[str]) -> None:
        self._known[found] = names
        self._prints |= {name: f"{found}.{place}" for place, name in enumerate(names)}

    def _fresh(self, name: str) -> str:
        """A name that no other graph's value has, and no output."""
        return f"exit{self._graphs}.{name}"
