"""The commands `headwater evaluate long` and `evaluate sts`: needles in long documents, likeness of sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli import options
from pipeline.cli.report import print_result, print_rows, print_table, print_warning, progress
from pipeline.evaluation.long import evaluate_long, read_lengths
from pipeline.evaluation.sts import Side, evaluate_sts


def long(
    lengths: Annotated[
        str, typer.Option("--lengths", help="Nominal tokens, of 0.75 words each.", metavar="N,N,…")
    ] = "512,1024,2048",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many times, each with other texts.")] = 5,
    haystack: Annotated[
        Path | None,
        typer.Option(
            "--haystack",
            help="Prose to hide needles in: a text file, or a Parquet file with a column text. Without it, generated.",
            metavar="FILE",
        ),
    ] = None,
    encoder: options.Encoder = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Hide passkeys and facts in long documents and look for them: by the encoder's way with length, and by others.

    hub: how many queries the most successful document won; truncated: documents that are longer than the method takes.
    Late chunking is measured with --set chunking.max_tokens=N, beside the same chunks alone ("best chunk").
    """
    settings = options.settings(config, set, {"encoder.model": encoder})
    wanted = read_lengths(lengths)
    with progress() as observe:
        found = evaluate_long(settings, wanted, seeds, haystack, observe)
    print_result(found, json_out, lambda: print_rows(_COLUMNS, [_columns(row) for row in found["rows"]]))
    if not found["plain_baselines"]:
        print_warning(
            "truncation and windows are those of slowed angles: an exported encoder has no plain model at hand. "
            "For the plain model's, name the model itself in --encoder, with --set encoder.long=ntk"
        )


_COLUMNS = ("task", "length", "method", "accuracy", "nDCG@10", "over truncation", "hub", "truncated")


def _columns(row: dict[str, Any]) -> tuple[str, ...]:
    gain = row["ndcg@10_gain"]
    return (
        row["task"],
        f"{row['length']:,}",
        row["method"],
        f"{row['accuracy']:.2f} ± {row['accuracy_sd']:.2f}",
        f"{row['ndcg@10']:.3f} ± {row['ndcg@10_sd']:.3f}",
        "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain) if gain else "",
        str(row["hub"]),
        f"{row['truncated']:,}",
    )


def sts(
    pairs: Annotated[
        Path, typer.Option("--pairs", help="A Parquet file with columns sentence1, sentence2 and score.")
    ],
    side: Annotated[
        Side, typer.Option("--side", help="As what both sentences are embedded: it decides on their prompt.")
    ] = "document",
    encoder: options.Encoder = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Compare cosines of sentence pairs with people's scores: Spearman, with its 95 % interval, and Pearson."""
    settings = options.settings(config, set, {"encoder.model": encoder})
    with progress() as observe:
        found = evaluate_sts(pairs, settings.encoder, side, observe)
    print_result(found, json_out, lambda: print_table(f"similarity on {pairs}", found))
