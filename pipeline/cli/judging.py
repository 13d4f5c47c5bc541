"""The commands `headwater versions gate` and `headwater versions drift`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from pipeline.cli import options
from pipeline.cli.report import out, print_result, print_table, progress, say
from pipeline.errors import UsageError
from pipeline.job import check_target
from pipeline.stores import Purpose, open_collection
from pipeline.upgrade.drifting import report_drift
from pipeline.upgrade.gate import Golden, judge_upgrade
from pipeline.upgrade.report import write_report
from pipeline.upgrade.verdict import Verdict

Queries = Annotated[
    Path | None,
    typer.Option(
        "--queries",
        help="Queries of yours: a Parquet file with columns id and text. Without --qrels only graph and latency "
        "are measured by them, and rankings by stored sentences.",
    ),
]
Qrels = Annotated[
    Path | None,
    typer.Option("--qrels", help="Their judgements: query_id, document_id and relevance."),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="A judged task beside the collection: a folder as BEIR lays it out, or mteb:NAME; may be repeated.",
        metavar="DIR",
    ),
]
Report = Annotated[
    Path | None, typer.Option("--report", help="Write report.md, verdict.json and a plot.", metavar="DIR")
]
Moved = Annotated[
    str | None,
    typer.Option("--encoder", help="Where the version's encoder is now, if it has moved.", metavar="FOLDER"),
]


def golden(queries: Path | None, qrels: Path | None, tasks: list[str] | None) -> Golden:
    """What the versions are asked; raises UsageError for judgements of no queries."""
    if qrels and not queries:
        raise UsageError("--qrels without --queries", "The queries that were judged", "Add --queries FILE")
    return Golden(queries, qrels, tuple(tasks or ()))


def gate(
    queries: Queries = None,
    qrels: Qrels = None,
    task: Tasks = None,
    report: Report = None,
    encoder: Moved = None,
    store: options.Store = None,
    collection: options.Collection = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Judge the version that was built against the one that serves: exit code 0 pass, 5 hold, 6 fail."""
    settings = options.settings(config, set, {"store.url": store, "store.collection": collection})
    check_target(settings)
    asked = golden(queries, qrels, task)
    opened, _ = open_collection(settings.store, Purpose.AUDIT)
    with closing(opened), progress() as observe:
        verdict = judge_upgrade(opened, settings, asked, observe, moved=encoder or "")
    if report:
        write_report(verdict, report)
    print_result(verdict.as_dict(), json_out, lambda: show_verdict(verdict))
    if queries and not qrels:
        say(
            f"{queries.name} has no judgements (--qrels): it counts for graph and latency, and the ranking is by "
            "sentences of stored chunks"
        )
    if verdict.exit_code:
        raise typer.Exit(verdict.exit_code)


def show_verdict(verdict: Verdict) -> None:
    """Print a verdict for a person."""
    out.print(f"[bold]{verdict.outcome}[/]  {verdict.old} → {verdict.new}")
    for one in verdict.checks:
        out.print(f"[bold]{one.outcome}[/]  {escape(one.name)}: {escape(one.sentence)}")


def drift(
    against: Annotated[
        str,
        typer.Option(
            "--against",
            help="A collection of the same store, or a sample that --save wrote; else other versions are found.",
            metavar="COLLECTION|FILE.npz",
        ),
    ] = "",
    points: Annotated[
        int, typer.Option("--points", min=20, help="Points drawn; more show smaller differences.")
    ] = 2000,
    save: Annotated[
        Path | None,
        typer.Option("--save", help="Keep the sample, to compare later runs with.", metavar="FILE.npz"),
    ] = None,
    store: options.Store = None,
    collection: options.Collection = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Say how vectors differ between two versions, or from an earlier run: norms, means, covariance, neighbours."""
    settings = options.settings(config, set, {"store.url": store, "store.collection": collection})
    check_target(settings)
    with progress() as observe:
        found = report_drift(settings, against, points, save, observe)
    print_result(found, json_out, lambda: _show_drift(found))


def _show_drift(found: dict[str, Any]) -> None:
    for side in ("before", "after"):
        figures = found[side]
        norms, lengths = figures["norms"] or {}, figures["characters"] or {}
        print_table(
            f"{side}: {figures['name']}",
            {
                "points": figures["points"],
                "dimensions": figures["dims"],
                "norm": f"{norms.get('mean')} ± {norms.get('sd')}",
                "characters, median": lengths.get("p50"),
                "effective rank": figures["effective_rank"],
            },
        )
    rest = {name.replace("_", " "): value for name, value in found.items() if name not in ("before", "after")}
    print_table("change", {name: "–" if value is None else value for name, value in rest.items()})
