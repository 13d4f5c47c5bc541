"""The commands `headwater versions …`: bridges between encoders, and what an upgrade would find."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import bridging
from pipeline.cli import options
from pipeline.cli.judging import drift, gate
from pipeline.cli.report import print_result, print_rows, print_table, progress
from pipeline.cli.upgrading import list_all
from pipeline.evaluation.pair import evaluate_versions, settings_of

versions_app = typer.Typer(
    help="Versions of an encoder: bridges between them, and what an upgrade finds.", no_args_is_help=True
)
versions_app.command("list")(list_all)
versions_app.command()(gate)
versions_app.command()(drift)

Old = Annotated[str, typer.Argument(help="The encoder that made the collection.", metavar="OLD_ENCODER")]
New = Annotated[str, typer.Argument(help="The encoder that is to follow it.", metavar="NEW_ENCODER")]


@versions_app.command()
def bridge(
    old: Old,
    new: New,
    sample: Annotated[
        str,
        typer.Option(
            "--sample", help="Documents like those of the collection, best its own; --id, --text as ever."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="A new folder for the bridge.", metavar="DIR")],
    texts: Annotated[
        int,
        typer.Option("--texts", min=100, help="How many chunks both encoders embed; more are better."),
    ] = 2000,
    seed: Annotated[int, typer.Option("--seed", help="The same texts and seed give the same bridge.")] = 0,
    trained: Annotated[
        bool, typer.Option("--trained", help="Also train a residual layer: minutes, seldom the best.")
    ] = False,
    id: options.Id = None,
    text: options.Text = None,
    template: options.Template = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Fit maps between two encoders, and choose those that find most of what the new one finds by itself."""
    flags = {"source.id": id, "source.text": text, "source.template": template}
    settings = options.settings(config, set, flags)
    before, after = settings_of(settings, old), settings_of(settings, new)
    with progress() as observe:
        report = bridging.build_bridge(
            before, after, sample, out, observe, texts=texts, seed=seed, trained=trained
        )
    print_result(report, json_out, lambda: _show_bridge(report))


@versions_app.command("eval")
def evaluate(
    old: Old,
    new: New,
    bridge: Annotated[
        Path, typer.Option("--bridge", help="A folder that `versions bridge` wrote.", metavar="DIR")
    ],
    documents: Annotated[
        str, typer.Option("--documents", help="Judged documents; --id and --text name the columns.")
    ],
    queries: options.Queries,
    qrels: options.Qrels,
    id: options.Id = None,
    text: options.JudgedText = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Measure every mix of old and new queries and documents on judged text, and indexes on their way."""
    settings = options.settings(config, set, {"source.id": id, "source.text": text})
    with progress() as observe:
        found = evaluate_versions(old, new, bridge, documents, queries, qrels, settings, observe)
    print_result(found, json_out, lambda: _show_matrix(found))


def _show_bridge(report: dict[str, Any]) -> None:
    print_table(
        f"bridge in {report['out']}",
        {name: report[name] for name in ("fingerprint", "texts", "document", "query", "seconds")},
    )
    rows = [
        (direction, method, f"{figures['recall@10']:.3f}", f"{figures.get('native_share', 0.5):.2f}")
        for direction, methods in report["held_out"].items()
        for method, figures in methods.items()
    ]
    print_rows(("direction", "method", "held-out recall@10", "native share"), rows)


def _show_matrix(found: dict[str, Any]) -> None:
    plain = [(name, "", f"{found[name]['ndcg@10']:.3f}", "", "") for name in ("old/old", "new/new")]
    crossed = []
    for way in found["ways"]:
        cell = way["new/old"]
        mixed = " ".join(f"{row['ndcg@10']:.3f}" for row in way["mixed"])
        said = "{:+.3f} [{:+.3f}, {:+.3f}]".format(cell["difference"], *cell["interval"])
        name = f"{way['way']}{' *' if way['chosen'] else ''}"
        crossed.append(("new/old", name, f"{cell['ndcg@10']:.3f}", said, mixed))
    columns = ("", "bridge (*: in force)", "nDCG@10", "against old/old", "0, 25, 50, 75, 100 % new")
    print_rows(columns, plain + crossed)
