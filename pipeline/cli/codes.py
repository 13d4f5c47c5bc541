"""The commands `headwater codes …`: train binary codes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import train as training
from pipeline.cli import options
from pipeline.cli.report import print_json, print_table, progress
from pipeline.config import Settings
from pipeline.errors import UsageError
from pipeline.job import check_target
from pipeline.schemas import Observer

codes_app = typer.Typer(help="Binary codes: train them.", no_args_is_help=True)


@codes_app.callback()
def _codes() -> None:
    """Keep `train` a subcommand while it is the only one."""


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
    bits: Annotated[int, typer.Option("--bits", min=1, max=4, help="Bits a dimension.")] = 2,
    dims: Annotated[
        int,
        typer.Option("--dims", min=0, help="Dimensions of a code, a multiple of 8; 0: those of the vectors."),
    ] = 0,
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
    if (documents is None) == (vectors is None):
        raise UsageError(
            "--documents and --from, or neither", "One of the two", "headwater codes train --documents …"
        )
    flags = {"source.id": id, "source.text": text, "source.template": template, "encoder.model": encoder}
    given = {"store.url": store, "store.collection": vectors if vectors and not _is_file(vectors) else None}
    settings = options.settings(config, set, flags | given)
    training.check_out(out)
    with progress() as observe:
        sample = _sample(documents, vectors, settings, observe)
        report = training.train(sample, out, observe, bits=bits, dims=dims, epochs=epochs, seed=seed)
    if json_out:
        print_json(report)
    else:
        print_table(f"codes in {out}", report)


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
