"""The commands `headwater codes …`: train binary codes, measure them, choose among them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import train as training
from pipeline.cli import options
from pipeline.cli.report import print_result, print_rows, print_table, progress
from pipeline.config import Settings
from pipeline.errors import UsageError
from pipeline.evaluation.choice import choose
from pipeline.evaluation.comparison import evaluate_codes
from pipeline.evaluation.pair import settings_of
from pipeline.job import check_target
from pipeline.schemas import Observer

codes_app = typer.Typer(
    help="Binary codes: train them, measure them, choose among them.", no_args_is_help=True
)


@codes_app.command()
def train(
    out: Annotated[Path, typer.Option("--out", help="A new folder for the codes.", metavar="DIR")],
    documents: Annotated[
        str | None,
        typer.Option("--documents", help="Train on these documents; --id and --text name the columns."),
    ] = None,
    vectors: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Train on vectors: a collection of --store, or a Parquet file with a column `vector`.",
            metavar="COLLECTION|FILE",
        ),
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option(
            "--compatible-with",
            help="Learn codes of --encoder that rank beside these older ones, of --old-encoder.",
            metavar="DIR",
        ),
    ] = None,
    old_encoder: Annotated[
        str | None,
        typer.Option("--old-encoder", help="The encoder of those older codes.", metavar="FOLDER_OR_ID"),
    ] = None,
    bits: Annotated[
        int | None, typer.Option("--bits", min=1, max=4, help="Bits a dimension; 2 if it is not said.")
    ] = None,
    dims: Annotated[
        int | None,
        typer.Option("--dims", min=0, help="Dimensions of a code, a multiple of 8; as vectors if not said."),
    ] = None,
    epochs: Annotated[
        int, typer.Option("--epochs", min=0, help="At most so many passes; it ends when nothing gets better.")
    ] = 30,
    seed: Annotated[int, typer.Option("--seed", help="The same vectors and seed give the same codes.")] = 0,
    id: options.Id = None,
    text: options.Text = None,
    template: options.Template = None,
    encoder: options.Encoder = None,
    store: options.Store = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Learn binary codes from documents or from their vectors; --codes of other commands takes the folder."""
    _check_given(documents, vectors)
    _check_beside(documents, beside, old_encoder, bits, dims)
    flags = {"source.id": id, "source.text": text, "source.template": template, "encoder.model": encoder}
    given = {"store.url": store, "store.collection": vectors if vectors and not _is_file(vectors) else None}
    settings = options.settings(config, set, flags | given)
    training.check_out(out)
    with progress() as observe:
        if beside and old_encoder and documents:
            before, after = (settings_of(settings, one) for one in (old_encoder, settings.encoder.model))
            report = training.train_beside(
                before, after, beside, documents, out, observe, epochs=epochs, seed=seed
            )
        else:
            sample = _sample(documents, vectors, settings, observe)
            report = training.train(
                sample, out, observe, bits=bits or 2, dims=dims or 0, epochs=epochs, seed=seed
            )
    print_result(report, json_out, lambda: print_table(f"codes in {out}", report))


def _check_given(documents: str | None, vectors: str | None) -> None:
    """Raise UsageError unless there is one thing to train on."""
    if (documents is None) == (vectors is None):
        raise UsageError(
            "--documents and --from, or neither", "One of the two", "headwater codes train --documents …"
        )


def _check_beside(
    documents: str | None, beside: Path | None, old_encoder: str | None, bits: int | None, dims: int | None
) -> None:
    """Raise UsageError where codes compatible with older ones are asked for by half, or in another shape."""
    if (beside or old_encoder) and (not (beside and old_encoder and documents) or bits or dims):
        raise UsageError(
            "codes compatible with older ones, of which not all is said, or too much",
            "--compatible-with, --old-encoder and --documents, as both encoders embed the same chunks; "
            "bits and dims are those of the older codes",
            "headwater codes train --compatible-with DIR --old-encoder OLD --encoder NEW --documents …",
        )


@codes_app.command("eval")
def evaluate(
    documents: Annotated[
        str, typer.Option("--documents", help="Judged documents; --id and --text name the columns.")
    ],
    queries: options.Queries,
    qrels: options.Qrels,
    codes: Annotated[
        list[Path] | None,
        typer.Option("--codes", help="A folder that `codes train` wrote; may be repeated.", metavar="DIR"),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw quality against bytes into this SVG file.", metavar="FILE"),
    ] = None,
    id: options.Id = None,
    text: options.Text = None,
    encoder: options.Encoder = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Measure what codes keep of the floats' ranking, beside all else that could be stored in as many bytes."""
    flags = {"source.id": id, "source.text": text, "encoder.model": encoder}
    settings = options.settings(config, set, flags)
    with progress() as observe:
        found = evaluate_codes(documents, queries, qrels, codes or [], settings, observe, plot)
    rows = [_columns(row) for row in found["rows"]]
    print_result(found, json_out, lambda: print_rows(_COLUMNS, rows))


@codes_app.command()
def plan(
    bytes_per_document: Annotated[
        int, typer.Option("--bytes-per-document", min=1, help="The most that a code may take.", metavar="N")
    ],
    table: Annotated[Path, typer.Option("--table", help="What `codes eval --json` printed.", metavar="FILE")],
    points: Annotated[
        int, typer.Option("--points", min=1, help="How many chunks there will be: their graph takes room.")
    ] = 1_000_000,
    json_out: options.Json = False,
) -> None:
    """Choose what keeps most of the ranking in so many bytes, and say what it takes in memory and on disk."""
    found = choose(table, bytes_per_document, points)

    def show() -> None:
        print_table(f"best in {bytes_per_document} bytes", found["best"])
        if found["codes"]:
            print_table("best codes folder; bytes a chunk in memory and on disk", found["codes"])

    print_result(found, json_out, show)


_COLUMNS = (
    "bytes",
    "method",
    "recall@10",
    "recall@100",
    "nDCG@10",
    "of the floats'",
    "rescored",
    "gain over untrained",
)


def _columns(row: dict[str, Any]) -> tuple[str, ...]:
    low, high = row["kept_interval"]
    gain = ""
    if row["gain"] is not None:
        gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(row["gain"], *row["gain_interval"])
    return (
        str(row["bytes"]),
        row["method"],
        f"{row['recall@10']:.3f}",
        f"{row['recall@100']:.3f}",
        f"{row['ndcg@10']:.3f}",
        f"{row['kept']:.1%} [{low:.1%}, {high:.1%}]",
        f"{row['rescored_kept']:.1%}",
        gain,
    )


def _sample(
    documents: str | None, vectors: str | None, settings: Settings, observe: Observer
) -> training.Sample:
    if documents is not None:
        return training.of_documents(documents, settings, observe)
    if vectors is not None and _is_file(vectors):
        return training.of_file(Path(vectors))
    check_target(settings)
    return training.of_collection(settings, observe)


def _is_file(name: str) -> bool:
    return name.endswith(".parquet")
