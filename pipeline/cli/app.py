"""The commands. Each reads its flags into settings, calls one function, and prints what came back."""

from __future__ import annotations

from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from pipeline import audit as audits
from pipeline import doctor as checks
from pipeline import ingest as runs
from pipeline import optimize as optimizing
from pipeline import plan as plans
from pipeline import streams
from pipeline.cli import options
from pipeline.cli.codes import codes_app
from pipeline.cli.encoders import encoders_app
from pipeline.cli.forgetting import forget
from pipeline.cli.measuring import long, sts
from pipeline.cli.report import (
    out,
    print_json,
    print_result,
    print_runs,
    print_table,
    progress,
    say,
    stray,
)
from pipeline.cli.running import counted, draining, executor_of, report, say_held
from pipeline.cli.upgrading import promote, reindex, retire, rollback
from pipeline.cli.versions import versions_app
from pipeline.errors import CollectionHeld, UsageError
from pipeline.evaluation import evaluate_retrieval, read_queries
from pipeline.ingest import history
from pipeline.job import check_target
from pipeline.search import Reader, Result

app = typer.Typer(
    name="headwater",
    help="Keep a Qdrant collection in step with streams of documents.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
evaluate_app = typer.Typer(
    help="Measure retrieval, long documents, likeness of sentences.", no_args_is_help=True
)
app.add_typer(evaluate_app, name="evaluate")
evaluate_app.command("long")(long)
evaluate_app.command("sts")(sts)
app.add_typer(codes_app, name="codes")
app.add_typer(versions_app, name="versions")
app.add_typer(encoders_app, name="encoders")
for command in (forget, reindex, promote, rollback, retire):
    app.command()(command)


@app.command()
def plan(
    source: options.Uri,
    id: options.Id = None,
    text: options.Text = None,
    template: options.Template = None,
    encoder: options.Encoder = None,
    codes: options.Codes = None,
    store: options.Store = None,
    collection: options.Collection = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Count documents, chunks, tokens and bytes exactly, and estimate the time; writes only the encoder's cache."""
    settings = options.settings(config, set, _flags(id, text, template, encoder, store, collection, codes))
    with progress() as observe:
        found = plans.plan(source, settings, observe)
    print_result(found.as_dict(), json_out, lambda: print_table(f"plan for {source}", found.as_dict()))


@app.command()
def ingest(
    source: options.Uri,
    id: options.Id = None,
    text: options.Text = None,
    template: options.Template = None,
    encoder: options.Encoder = None,
    codes: options.Codes = None,
    store: options.Store = None,
    collection: options.Collection = None,
    executor: Annotated[
        Literal["local", "ray"] | None, typer.Option("--executor", help="Threads here, or lanes on Ray.")
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option(
            "--run-id", help="Started again under this name, the run resumes or says that it is done."
        ),
    ] = None,
    snapshot: options.Snapshot = None,
    max_deletes: options.MaxDeletes = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Bring a collection in step with a source. Run again after a crash, it ends as if nothing had happened."""
    flags = _flags(id, text, template, encoder, store, collection, codes)
    flags |= {"run.executor": executor, "run.id": run_id}
    flags |= {"source.snapshot": snapshot, "source.max_deletes": max_deletes}
    settings = options.settings(config, set, flags)
    try:
        # Ray prints the deaths of its workers to stdout, which belongs to the JSON.
        with redirect_stdout(stray()), draining() as stop, progress() as observe, counted(settings):
            summary = runs.ingest(source, settings, executor_of(settings), stop, observe)
    except CollectionHeld as held:  # the other run does this one's work: no failure to wake anybody for
        raise typer.Exit(say_held(held, stop, json_out)) from None
    code = report(summary, f"{source} → {settings.store.collection}", json_out)
    if summary.failed and settings.source.snapshot:
        say("nothing was removed: only a source that is read to its end shows what it lacks")
    raise typer.Exit(code)


@app.command()
def watch(
    source: options.Watched,
    id: options.Id = None,
    text: options.Text = None,
    template: options.Template = None,
    encoder: options.Encoder = None,
    codes: options.Codes = None,
    store: options.Store = None,
    collection: options.Collection = None,
    max_latency: options.MaxLatency = None,
    max_deletes: options.MaxDeletes = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Keep a collection in step with files or a stream that go on, until Ctrl-C or SIGTERM."""
    flags = _flags(id, text, template, encoder, store, collection, codes)
    flags |= {"watch.max_latency_s": max_latency, "source.max_deletes": max_deletes}
    settings = options.settings(config, set, flags)
    try:
        with redirect_stdout(stray()), draining() as stop, counted(settings):
            summary = streams.watch(source, settings, executor_of(settings), stop)
    except CollectionHeld as held:
        raise typer.Exit(say_held(held, stop, json_out)) from None
    raise typer.Exit(report(summary, f"{source} → {settings.store.collection}", json_out))


@app.command()
def audit(
    source: options.Uri,
    id: options.Id = None,
    text: options.Text = None,
    template: options.Template = None,
    encoder: options.Encoder = None,
    codes: options.Codes = None,
    store: options.Store = None,
    collection: options.Collection = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Index what is missing or stale, remove the surplus.")
    ] = False,
    max_deletes: options.MaxDeletes = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Compare a source with its collection, text by text and chunk by chunk. Exit code 4: they differ."""
    flags = _flags(id, text, template, encoder, store, collection, codes) | {
        "source.max_deletes": max_deletes
    }
    settings = options.settings(config, set, flags)
    with redirect_stdout(stray()), draining() as stop, progress() as observe:
        if repair:
            found, left = audits.repair(source, settings, lambda: executor_of(settings), stop, observe)
        else:
            found = left = audits.audit(source, settings, observe)
    values = found.as_dict() | ({"left": left.as_dict()} if repair else {})

    def show() -> None:
        print_table(f"{source} against {settings.store.collection}", found.as_dict())
        if repair and not found.clean:
            print_table("after the repair", left.as_dict())

    print_result(values, json_out, show)
    if stop.is_set():
        raise typer.Exit(130)
    if left.exit_code:
        raise typer.Exit(left.exit_code)


@app.command()
def status(
    store: options.Store = None,
    collection: options.Collection = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="One run alone.")] = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Show the runs of this machine, going on and past, the latest first."""
    settings = options.settings(config, set, _flags(None, None, None, None, store, collection))
    found = [run for run in history(settings) if run_id in (None, run.header.run)]
    print_result([run.as_dict() for run in found], json_out, lambda: print_runs(found))


@app.command()
def search(
    query: Annotated[str | None, typer.Argument(help="What to look for.", show_default=False)] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", help="Where the collection's encoder is now, if it has moved.", metavar="FOLDER"
        ),
    ] = None,
    codes: options.Codes = None,
    store: options.Store = None,
    collection: options.Collection = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Results a query.")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option("--filter", help="year>=2000, lang=en|de, or a Qdrant filter as JSON; all must hold."),
    ] = None,
    by: Annotated[
        Literal["chunk", "document"], typer.Option("--by", help="Chunks, or each document's best chunk.")
    ] = "chunk",
    vector: Annotated[
        str, typer.Option("--vector", help="The aspect to search by, by its vector's name.", metavar="NAME")
    ] = "",
    queries: Annotated[
        Path | None, typer.Option("--queries", help="Many queries: a Parquet file with columns id and text.")
    ] = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Search a collection with the encoder its contract names."""
    if (query is None) == (queries is None):
        raise UsageError(
            "a query and --queries, or neither", "One of the two", 'headwater search "a question" …'
        )
    if query is not None and not query.strip():
        raise UsageError("an empty query", "Words to look for", 'headwater search "a question" …')
    settings = options.settings(config, set, _flags(None, None, None, encoder, store, collection, codes))
    check_target(settings)
    with Reader.open(settings.store, settings.encoder, vector) as reader:
        if queries is not None:
            _search_many(reader, queries, limit, where or [], by == "document")
            return
        results = reader.search(query or "", limit, where or [], by == "document")
    values = {"query": query, "results": [result.as_dict() for result in results]}
    print_result(values, json_out, lambda: _show(results))


@evaluate_app.command("retrieval")
def evaluate(
    documents: Annotated[
        str, typer.Option("--documents", help="Documents; --id and --text name the columns.")
    ],
    queries: options.Queries,
    qrels: options.Qrels,
    id: options.Id = None,
    text: options.JudgedText = None,
    encoder: options.Encoder = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Measure nDCG@10 and recall@100 of an encoder on judged text, exactly and without a store."""
    settings = options.settings(config, set, _flags(id, text, None, encoder, None, None))
    with progress() as observe:
        measured = evaluate_retrieval(documents, queries, qrels, settings, observe)
    print_result(measured, json_out, lambda: print_table(f"retrieval on {documents}", measured))


@app.command()
def doctor(
    source: Annotated[
        str | None, typer.Argument(help="Check this source's columns too.", show_default=False)
    ] = None,
    id: options.Id = None,
    text: options.Text = None,
    encoder: options.Encoder = None,
    codes: options.Codes = None,
    store: options.Store = None,
    collection: options.Collection = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Check configuration, encoder, providers, store and dimensions, and say what to do."""
    settings = options.settings(config, set, _flags(id, text, None, encoder, store, collection, codes))
    found = list(checks.examine(settings, source))
    print_result([vars(check) for check in found], json_out, lambda: _show_checks(found))
    if not all(check.ok for check in found):
        raise typer.Exit(1)


@app.command()
def optimize(
    store: options.Store = None,
    collection: options.Collection = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Build the graph and the codes in memory of an edge store's collection; a server does so by itself."""
    settings = options.settings(config, set, _flags(None, None, None, None, store, collection))
    built = optimizing.optimize(settings)
    title = f"optimized {settings.store.collection}"
    print_result(built.as_dict(), json_out, lambda: print_table(title, built.as_dict()))


def _flags(
    id: str | None,
    text: str | None,
    template: str | None,
    encoder: str | None,
    store: str | None,
    collection: str | None,
    codes: str | None = None,
) -> dict[str, str | bool | None]:
    return {
        "source.id": id,
        "source.text": text,
        "source.template": template,
        "encoder.model": encoder,
        "encoder.codes": codes,
        "store.url": store,
        "store.collection": collection,
    }


def _show_checks(found: list[checks.Check]) -> None:
    for check in found:
        mark = "[green]ok[/]" if check.ok else "[bold red]no[/]"
        out.print(f"{mark}  {check.name:<12} {escape(check.message)}")


def _search_many(reader: Reader, queries: Path, limit: int, where: list[str], by_document: bool) -> None:
    ids, texts = read_queries(queries)
    batch = 64
    for start in range(0, len(ids), batch):
        found = reader.search_many(texts[start : start + batch], limit, where, by_document)
        for query_id, results in zip(ids[start : start + batch], found, strict=True):
            print_json({"query_id": query_id, "results": [result.as_dict() for result in results]})


def _show(results: list[Result]) -> None:
    for number, result in enumerate(results, 1):
        excerpt = " ".join(result.text.split())[:240]
        out.print(
            f"[bold]{number}. {escape(result.document_id)}[/]  {result.score:.3f}  [dim]{escape(excerpt)}[/]"
        )
    if not results:
        out.print("nothing found")
