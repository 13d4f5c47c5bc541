"""The commands `headwater encoders …`: write an encoder to a folder of its own, and check one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline import encoders
from pipeline.cli import decoding, options
from pipeline.cli.report import print_result, print_rows, print_table, progress, say
from pipeline.errors import UsageError

encoders_app = typer.Typer(help="Export encoders to folders, and check them.", no_args_is_help=True)
encoders_app.command("tune")(decoding.tune_decoder)


Precision = Annotated[
    Literal["fp32", "fp16", "int8"] | None, typer.Option("--precision", help="How the graph computes.")
]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", min=0, help="The longest input; 0: what the model says.")
]
Dims = Annotated[
    int | None, typer.Option("--dims", min=0, help="Only the first dimensions of a vector; 0: all.")
]
Layers = Annotated[
    int | None, typer.Option("--layers", min=0, help="Only the first layers of the model; 0: all.")
]
Long = Annotated[
    str | None,
    typer.Option(
        "--long", help="What is done with documents longer than the model's window.", metavar="METHOD"
    ),
]
AttentionScaling = Annotated[
    bool | None,
    typer.Option("--attention-scaling", help="Sharper attention in long texts.", show_default=False),
]
SpaceKind = Annotated[
    str | None,
    typer.Option(
        "--space",
        help="Fit a better space on a sample: centre, all-but-the-top[:DIRECTIONS] or whiten[:DIMS].",
        metavar="KIND",
    ),
]
Sample = Annotated[
    Path | None, typer.Option("--sample", help="Texts to fit --space on: a Parquet file.", metavar="FILE")
]


@encoders_app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(
            help="A model folder, a GGUF file, a hub id, or package:NAME.", metavar="FOLDER_OR_ID"
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="A new folder for the encoder.", metavar="DIR")],
    precision: Precision = None,
    max_tokens: MaxTokens = None,
    dims: Dims = None,
    layers: Layers = None,
    long: Long = None,
    attention_scaling: AttentionScaling = None,
    prompt: decoding.Prompt = None,
    token_prepending: decoding.TokenPrepending = None,
    start: decoding.Start = None,
    exit: decoding.Exit = None,
    out_layer: decoding.OutLayer = None,
    pooling: decoding.Pooling = None,
    attention: decoding.Attention = None,
    space: SpaceKind = None,
    sample: Sample = None,
    text: Annotated[str, typer.Option("--text", help="The sample's column of texts.")] = "text",
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Write a folder with all that an encoder needs, which `--encoder` takes here and on any other machine."""
    flags = {"model": model, "precision": precision, "max_tokens": max_tokens, "dims": dims, "layers": layers}
    flags |= {"long": long, "attention_scaling": attention_scaling}
    decoder = {"prompt": prompt, "token_prepending": token_prepending, "start": start, "exit": exit}
    decoder |= {"out_layer": out_layer, "pooling": pooling, "attention": attention}
    flags |= {f"decoder.{name}": value for name, value in decoder.items()}
    settings = options.settings(config, set, {f"encoder.{name}": value for name, value in flags.items()})
    if (space is None) != (sample is None):
        raise UsageError(
            f"--{'sample' if space is None else 'space'} without --{'space' if space is None else 'sample'}",
            "Both: a space is fitted on a sample of texts",
            "Add the other, or leave both out",
        )
    texts = encoders.read_sample(sample, text) if sample else []
    with progress() as observe:
        if space is None:
            manifest = encoders.export(settings.encoder, out, observe)
        else:
            manifest = encoders.export_spaced(settings.encoder, out, space, texts, observe)
    print_result({"encoder": str(out), **manifest}, json_out, lambda: print_table(str(out), _said(manifest)))


@encoders_app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="An exported encoder.", metavar="DIR")],
    model: Annotated[
        str, typer.Option("--model", help="Where its model is now, if it has moved.", metavar="FOLDER_OR_ID")
    ] = "",
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Compare an exported encoder with its model, run by torch, at several shapes. Exit code 1: they differ."""
    settings = options.settings(config, set, {})
    with progress() as observe:
        found = encoders.check(folder, model, settings.encoder, observe)
    print_result(found, json_out, lambda: print_rows(_COLUMNS, [_columns(row) for row in found["rows"]]))
    if not found["passed"]:
        say(f"{folder} does not reproduce {found['model']}: export it again")
        raise typer.Exit(1)


_COLUMNS = ("graph", "rows", "tokens", "difference", "least cosine", "mean cosine", "")


def _columns(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["graph"],
        str(row["rows"]),
        str(row["tokens"]),
        f"{row['difference']:.2g}",
        f"{row['least_cosine']:.6f}",
        f"{row['mean_cosine']:.6f}",
        "ok" if row["passed"] else "differs",
    )


def _said(manifest: dict[str, Any]) -> dict[str, Any]:
    spec, parity = manifest["spec"], manifest["parity"]["optimised"]
    wanted = ("source", "precision", "max_tokens", "dims", "layers")
    shown = {name: spec[name] for name in wanted if spec[name]}
    shown |= {f"space: {name}": value for name, value in manifest.get("space", {}).items()}
    shown |= {f"long: {name}": value for name, value in (spec["long"] or {}).items()}
    shown |= {name: value for name, value in (spec["decoder"] or {}).items() if value}
    return {
        "version": manifest["version"],
        **shown,
        "difference from the model": f"{parity['difference']:.2g}",
    }
