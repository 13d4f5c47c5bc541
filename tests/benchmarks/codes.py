"""What codes keep of the floats' ranking: learned ones, training-free ones and Qdrant's own, at equal bytes.

    python tests/benchmarks/codes.py SET… --encoder minilm=FOLDER --encoder mpnet=FOLDER --cache DIR [--more PARQUET]

A SET is a folder with documents.parquet, queries.parquet and qrels.parquet. Everything is fitted twice: on the
documents that are searched (`same`), and on those of the other sets and of --more (`other`). Vectors, trained codes and
what was measured stay in --cache: it goes on where it was stopped.

The options of the training were found with an eye on these sets, then held against others by held-out documents alone:
learning rate 3e-4, temperature .05, batches of 2048 and a contrastive loss beside all found fewer of their neighbours.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
from numpy.typing import NDArray

from pipeline.codes import Binarizer, load_codes, save_codes
from pipeline.codes.training import TrainingOptions, train_codes
from pipeline.config import EncoderConfig, Settings
from pipeline.encoders import load_plain_encoder
from pipeline.evaluation import read_qrels
from pipeline.evaluation.codes import (
    JudgedVectors,
    Measured,
    Method,
    coded,
    difference,
    floats,
    measure,
    summarise,
)
from pipeline.evaluation.comparison import as_json
from pipeline.evaluation.figure import draw_quality
from pipeline.evaluation.judged import embed_judged
from pipeline.evaluation.methods import qdrant_methods, untrained_methods
from pipeline.lane.embedding import embed_chunks
from pipeline.sources import open_source

LEAST_CHUNKS = 1000  # smaller sets are trained on, and not searched
MAX_TOKENS = 256
MOST_MORE = 4000
PAPER = TrainingOptions(
    start="rotation",
    hidden=2048,
    contrastive=1.0,
    distil=0.0,
    optimizer="sgd",
    learning_rate=0.08,
    epochs=10,
)
"""The paper's blocks, loss and optimizer; of what it has, a few thousand vectors lack labelled pairs (neighbours are
mined), batches of 2048 pairs (512), and steps by which the rate falls (a cosine)."""

Vectors = NDArray[np.float32]
KINDS = ("ndcg", "recall10", "recall100", "rescored_ndcg", "rescored_recall10")


@dataclass(frozen=True)
class Corpora:
    """The sets of one model that are searched, and what else codes may be trained on."""

    model: str
    cache: Path
    judged: Sequence[JudgedVectors]
    more: Sequence[tuple[str, Vectors]]
    paper: bool

    @property
    def width(self) -> int:
        return int(self.judged[0].documents.shape[1])

    def sample(self, corpus: str, judged: JudgedVectors) -> Vectors:
        """What is fitted on for a set: its own documents, or all others' in a random order."""
        if corpus == "same":
            return judged.documents
        others = [(other.name, other.documents) for other in self.judged] + [*self.more]
        rows = np.concatenate([vectors for name, vectors in others if name != judged.name])
        return rows[np.random.default_rng(0).permutation(len(rows))]


def main() -> None:
    arguments = _arguments()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    for model, folder in (encoder.split("=", 1) for encoder in arguments.encoder):
        corpora = embed(model, folder, arguments)
        harness.write_result(
            f"codes.{model}",
            {"sets": [path.name for path in arguments.sets], "more": MOST_MORE if arguments.more else 0},
            {"max_tokens": MAX_TOKENS, "paper": arguments.paper},
            0,
            {f"{corpus} corpus": compare(corpora, corpus) for corpus in arguments.train},
        )


def embed(model: str, folder: str, arguments: argparse.Namespace) -> Corpora:
    """Vectors of all sets, from the cache where they are there."""
    settings = Settings(encoder=EncoderConfig(model=folder, max_tokens=MAX_TOKENS))
    judged: list[JudgedVectors] = []
    more: list[tuple[str, Vectors]] = []
    for path in arguments.sets:
        found = _judged(path, settings, arguments.cache / f"{model}.{path.name}.npz")
        if len(found.documents) < LEAST_CHUNKS:
            more.append((found.name, found.documents))
        else:
            judged.append(found)
    if arguments.more:
        rows = _documents(arguments.more, settings, arguments.cache / f"{model}.more.npz")
        picked = np.random.default_rng(0).permutation(len(rows))[:MOST_MORE]
        more.append(("more", rows[picked]))
    return Corpora(model, arguments.cache, judged, more, arguments.paper)


def compare(corpora: Corpora, corpus: str) -> dict[str, Any]:
    """All methods on all sets: rows, the differences that bars are set for, and a drawing."""
    width = corpora.width

    def sample(judged: JudgedVectors) -> Vectors:
        return corpora.sample(corpus, judged)

    sizes = [width // 8, width // 4] + [128] * (width > 512)
    least = min(len(sample(judged)) for judged in corpora.judged)
    methods = untrained_methods(width, sizes, sample, least) + qdrant_methods(width)
    methods += learned_methods(corpora, corpus)
    reference = [measure(floats(width), judged) for judged in corpora.judged]
    measured = {
        method.name: [_measured(corpora, corpus, method, judged) for judged in corpora.judged]
        for method in methods
    }
    rows = summarise(measured, reference)
    small = [row for row in rows if row.bytes <= width // 4]
    title = f"nDCG@10 kept: {corpora.model}, trained on the {corpus} corpus"
    draw_quality(small, harness.RESULTS / f"codes.{corpora.model}.{corpus}.svg", title)
    return {
        "sets": {judged.name: len(judged.documents) for judged in corpora.judged},
        "fitted_on": {judged.name: len(sample(judged)) for judged in corpora.judged},
        "float_ndcg@10": float(np.mean([one.ndcg.mean() for one in reference])),
        "rows": [as_json(row) for row in rows],
        "differences": differences(measured, width),
    }


def _measured(corpora: Corpora, corpus: str, method: Method, judged: JudgedVectors) -> Measured:
    """`measure`, from the cache where that was done before."""
    fitted = "" if method.name.startswith("Qdrant") else f"{corpus}."
    name = method.name.replace("/", "")
    file = corpora.cache / f"{corpora.model}.{fitted}{judged.name}.{name}.npz"
    if not file.exists():
        harness.say(file.stem)
        found = measure(method, judged)
        np.savez(file, **{each: getattr(found, each) for each in KINDS})
    with np.load(file) as kept:
        return Measured(method, *(kept[each] for each in KINDS))


def learned_methods(corpora: Corpora, corpus: str) -> list[Method]:
    """Learned codes of several shapes, one of them also with the paper's scale; the paper's own method if wanted."""
    width = corpora.width
    shapes = [(width // 2, 2), (width // 2, 4)]
    # Of wider vectors one plane as long as two of half the width takes an hour on two cores.
    shapes += [(256, 4)] if width > 512 else [(width, 1), (width, 2)]
    methods = []
    for dims, bits in shapes:
        made = _trained(corpora, corpus, _options(corpus, dims, bits), f"learned {dims}x{bits}")
        name, size = f"learned {dims}x{bits}", dims * bits // 8
        methods += [
            coded(name, made, "float", size, True),
            coded(f"{name}, coded queries", made, "code", size, True),
        ]
        if (dims, bits) == shapes[0]:
            methods.append(coded(f"{name}, 1/|V|", _by_norm(made), "float", size, True))
    if corpora.paper and corpus == "same":
        options = replace(PAPER, dims=width // 2, bits=2)
        made = _by_norm(_trained(corpora, corpus, options, f"paper {width // 2}x2"))
        methods.append(coded(f"paper {width // 2}x2", made, "code", width // 8, True))
    return methods


def differences(measured: dict[str, list[Measured]], width: int) -> dict[str, Any]:
    """nDCG@10 of one method less another's, without and with rescore, and recall@10; each with its interval."""
    half = width // 2
    pairs = [
        (f"learned {half}x2", "Qdrant TurboQuant 1 bit"),
        (f"learned {half}x4", "Qdrant TurboQuant 2 bit"),
        (f"learned {width}x2", "Qdrant TurboQuant 2 bit"),
        (f"learned {half}x2, coded queries", "Qdrant TurboQuant 1 bit"),
        (f"learned {half}x4, coded queries", "Qdrant TurboQuant 2 bit"),
        (f"learned {half}x2", f"learned {width}x1"),
        (f"learned {half}x2, coded queries", f"learned {width}x1, coded queries"),
        (f"learned {half}x2", f"itq {half}x2"),
        (f"learned {half}x2", f"learned {half}x2, 1/|V|"),
        (f"learned {half}x2, coded queries", f"paper {half}x2"),
    ]
    found: dict[str, Any] = {}
    for ours, theirs in pairs:
        if ours in measured and theirs in measured:
            found[f"{ours} less {theirs}"] = {
                "ndcg@10": difference(measured[ours], measured[theirs], "ndcg"),
                "rescored_ndcg@10": difference(measured[ours], measured[theirs], "rescored_ndcg"),
                "recall@10": difference(measured[ours], measured[theirs], "recall10"),
            }
    return found


def _options(corpus: str, dims: int, bits: int) -> TrainingOptions:
    if corpus == "same":
        return TrainingOptions(dims=dims, bits=bits)
    return TrainingOptions(dims=dims, bits=bits, neighbours=1, epochs=12, patience=4)  # many more vectors


def _trained(
    corpora: Corpora, corpus: str, options: TrainingOptions, name: str
) -> Callable[[JudgedVectors], Binarizer]:
    def make(judged: JudgedVectors) -> Binarizer:
        folder = corpora.cache / f"{corpora.model}.{corpus}.{judged.name}.{name}"
        if not (folder / "binarizer.json").exists():
            binarizer, report = train_codes(corpora.sample(corpus, judged), options)
            harness.say(f"{folder.name}: {report}")
            save_codes(binarizer, folder)
        return load_codes(folder)

    return make


def _by_norm(make: Callable[[JudgedVectors], Binarizer]) -> Callable[[JudgedVectors], Binarizer]:
    def normed(judged: JudgedVectors) -> Binarizer:
        binarizer = make(judged)
        return replace(binarizer, spec=replace(binarizer.spec, scale="norm"))

    return normed


def _judged(path: Path, settings: Settings, cached: Path) -> JudgedVectors:
    if not cached.exists():
        files = (str(path / "documents.parquet"), path / "queries.parquet", path / "qrels.parquet")
        harness.say(f"embedding {path.name}")
        found, _ = embed_judged(*files, settings, lambda _: None)
        np.savez(
            cached,
            documents=found.documents,
            owners=found.owners,
            ids=np.array(found.ids),
            queries=found.queries,
            query_ids=np.array(found.query_ids),
        )
    with np.load(cached) as kept:
        ids, query_ids = kept["ids"].tolist(), kept["query_ids"].tolist()
        arrays = kept["documents"], kept["owners"], ids, kept["queries"], query_ids
    return JudgedVectors(path.name, *arrays, read_qrels(path / "qrels.parquet"))


def _documents(file: Path, settings: Settings, cached: Path) -> Vectors:
    if not cached.exists():
        harness.say(f"embedding {file.name}")
        encoder = load_plain_encoder(settings.encoder)
        with tempfile.TemporaryDirectory() as scratch:
            source = open_source(str(file), settings.source, Path(scratch))
            np.savez(cached, documents=embed_chunks(source, settings, encoder, lambda _: None).vectors)
        encoder.close()
    with np.load(cached) as kept:
        vectors: Vectors = kept["documents"]
    return vectors


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path, metavar="SET")
    parser.add_argument("--encoder", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--more", type=Path, help="documents to train on besides")
    parser.add_argument("--train", nargs="+", default=["same", "other"], choices=["same", "other"])
    parser.add_argument(
        "--paper", action="store_true", help="the paper's blocks and loss, too: slow on a CPU"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
