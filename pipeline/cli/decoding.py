"""The flags that make an encoder out of a language model, and `headwater encoders tune`, which chooses among them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli import options
from pipeline.cli.report import print_result, print_table, progress
from pipeline.encoders.prepare import check_out, export
from pipeline.evaluation.tuning import PROMPTS, tune

Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help="Of a language model: prompteol, pretended-cot, knowledge, metaeol, or a template with {text}.",
        metavar="NAME_OR_TEMPLATE",
    ),
]
TokenPrepending = Annotated[
    bool | None,
    typer.Option(
        "--token-prepending/--no-token-prepending",
        help="A token before the text takes the last one's state.",
        show_default=False,
    ),
]
Start = Annotated[int | None, typer.Option("--start", min=0, help="The first layer that it does so before.")]
Exit = Annotated[
    int | None,
    typer.Option("--exit", min=0, help="The first that it no longer does; 0: after a fifth of them."),
]
OutLayer = Annotated[
    int | None,
    typer.Option("--out-layer", help="Whose states become the vector; -1: all layers, -2: all but one."),
]
Pooling = Annotated[
    str | None,
    typer.Option(
        "--pooling",
        help="auto, last, mean, weighted-mean, eos, or with weights of its own latent-attention or multi-layer.",
        metavar="POOLING",
    ),
]
Attention = Annotated[
    str | None, typer.Option("--attention", help="auto, causal or bidirectional.", metavar="MASK")
]


def tune_decoder(
    model: Annotated[
        str, typer.Argument(help="A GGUF file, a model folder, a hub id, or package:NAME.", metavar="MODEL")
    ],
    pairs: Annotated[
        Path, typer.Option("--pairs", help="A Parquet file with columns sentence1, sentence2 and score.")
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="A prompt to try, and again for another.", metavar="NAME_OR_TEMPLATE"),
    ] = None,
    most: Annotated[
        int, typer.Option("--most", min=0, help="Of how many pairs, drawn at random; 0: all.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Export what was chosen to a new folder.", metavar="DIR")
    ] = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Choose prompt and layers for a language model on half of the pairs, and score them on the other half."""
    settings = options.settings(config, set, {"encoder.model": model}).encoder
    if out:
        check_out(out)  # before hours of tuning
    with progress() as observe:
        found = tune(settings, pairs, prompt or PROMPTS, most, observe)
    if out:
        how = type(settings.decoder)(**found["chosen"])
        export(settings.model_copy(update={"decoder": how}), out)
        found["encoder"] = str(out)
    print_result(found, json_out, lambda: print_table(f"chosen for {model}", _said(found)))


def _said(found: dict[str, Any]) -> dict[str, Any]:
    scores = {"Spearman where it was chosen": found["spearman"], "held out": found["held_out"]}
    if found["gain"]:
        gain, low, high = found["gain"]
        scores["gain by token prepending, held out"] = f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]"
    return {**found["chosen"], **scores}
