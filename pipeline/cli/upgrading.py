"""The commands `headwater reindex | promote | rollback | retire`, and `headwater versions list`."""

from __future__ import annotations

from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.cli import options
from pipeline.cli.judging import Moved, Qrels, Queries, Report, Tasks, golden
from pipeline.cli.report import out, print_error, print_result, print_rows, print_table, progress, say, stray
from pipeline.cli.running import draining, executor_of, rows_of, say_held, say_not_done
from pipeline.config import DEFAULT_ENCODER, EncoderConfig, Settings
from pipeline.errors import CollectionHeld, UpgradeRefused, UsageError
from pipeline.stores import NEXT, Foreign, Store
from pipeline.upgrade import promotion
from pipeline.upgrade.candidate import Way
from pipeline.upgrade.decision import exit_code_of
from pipeline.upgrade.difference import Mirrored
from pipeline.upgrade.gate import judge_upgrade
from pipeline.upgrade.limits import Hours, Limits
from pipeline.upgrade.listing import Listed, list_versions
from pipeline.upgrade.promotion import Swapped
from pipeline.upgrade.reindex import Reindexed
from pipeline.upgrade.reindex import reindex as build
from pipeline.upgrade.report import write_report
from pipeline.upgrade.verdict import Verdict


def reindex(
    to: Annotated[
        str,
        typer.Option(
            "--to", help="The new encoder: a folder, a hub id, or package:NAME.", metavar="NEW_ENCODER"
        ),
    ],
    bridge: Annotated[
        Path | None,
        typer.Option(
            "--bridge",
            help="Map all vectors at once by what `versions bridge` wrote, then embed.",
            metavar="DIR",
        ),
    ] = None,
    source: Annotated[
        str, typer.Option("--from", help="Cut the documents of this source anew, too.", metavar="SOURCE")
    ] = "",
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=0, help="Stop after so many tokens; run again to go on.")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option("--window", help="Work at these hours alone, as 01:00-05:00, night by night."),
    ] = None,
    executor: Annotated[
        Literal["local", "ray"] | None, typer.Option("--executor", help="With --from: threads here, or Ray.")
    ] = None,
    id: options.Id = None,
    text: options.Text = None,
    template: options.Template = None,
    codes: options.Codes = None,
    store: options.Store = None,
    collection: options.Collection = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Build the version of another encoder beside the one that serves, which goes on; resumes what was begun."""
    flags = {"source.id": id, "source.text": text, "source.template": template, "run.executor": executor}
    flags |= {"encoder.model": to, "encoder.codes": codes, "store.url": store, "store.collection": collection}
    limits = Limits(max_tokens, Hours.read(window) if window is not None else None)
    _reindex(options.settings(config, set, flags), limits, source, bridge, json_out)


def _reindex(settings: Settings, limits: Limits, source: str, bridge: Path | None, json_out: bool) -> None:
    """Reindex, and say what was done and what is left."""
    try:
        with redirect_stdout(stray()), draining() as stop, progress() as observe:
            done = build(settings, limits, lambda: executor_of(settings), stop, observe, source, bridge)
    except CollectionHeld as held:  # the other run builds what this one would
        raise typer.Exit(say_held(held, stop, json_out)) from None
    print_result(done.as_dict(), json_out, lambda: _show_reindexed(done))
    _say_not_carried(done.not_carried, f"{done.collection}{NEXT}")
    if bridge and done.way in (Way.NOTHING, Way.IN_PLACE):
        say("--bridge was not needed: the collection is of this encoder already, and nothing is left to map")
    elif bridge and done.complete and not done.done.mapped:
        say(
            f"--bridge was not needed: {done.collection}{NEXT} has a vector for every document, and nothing is to map"
        )
    _say_what_is_left(done)
    if done.ingested:
        say_not_done(done.ingested)
    if done.exit_code:
        raise typer.Exit(done.exit_code)


def promote(
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
    """Let the version that was built serve, if the gate lets it pass (else exit code 5 or 6); the other is kept."""
    settings = options.settings(config, set, {"store.url": store, "store.collection": collection})
    asked = golden(queries, qrels, task)
    verdicts: list[Verdict] = []
    with redirect_stdout(stray()), draining() as stop, progress() as observe:

        def judge(opened: Store) -> Verdict:
            verdict = judge_upgrade(opened, settings, asked, observe, behind=True, moved=encoder or "")
            verdicts.append(verdict)
            if report:
                write_report(verdict, report)
            return verdict

        try:
            done = promotion.promote(settings, _how(settings, encoder), judge, stop, observe)
        except UpgradeRefused as refused:
            if stop.is_set():
                raise typer.Exit(130) from refused
            if code := exit_code_of(verdicts[-1].outcome) if verdicts else 0:
                print_error(str(refused))
                raise typer.Exit(code) from None
            raise
    print_result(done.as_dict(), json_out, lambda: _show_swapped(done))
    _say_not_carried(done.not_carried, done.collection)


def rollback(
    encoder: Moved = None,
    store: options.Store = None,
    collection: options.Collection = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Let the version that was replaced serve again, with all that has changed since."""
    settings = options.settings(config, set, {"store.url": store, "store.collection": collection})
    with redirect_stdout(stray()), draining() as stop, progress() as observe:
        try:
            done = promotion.rollback(settings, _how(settings, encoder), stop, observe)
        except UpgradeRefused as refused:
            if stop.is_set():
                raise typer.Exit(130) from refused
            raise
    print_result(done.as_dict(), json_out, lambda: _show_swapped(done))
    _say_not_carried(done.not_carried, done.collection)


def retire(
    now: Annotated[bool, typer.Option("--now", help="Also before its time.")] = False,
    candidate: Annotated[
        bool, typer.Option("--next", help="Throw away the version that is being built instead.")
    ] = False,
    unused: Annotated[
        bool, typer.Option("--unused", help="Delete instead what no alias names, of commands that died.")
    ] = False,
    store: options.Store = None,
    collection: options.Collection = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Delete the version that was replaced, once its time is over."""
    settings = options.settings(config, set, {"store.url": store, "store.collection": collection})
    if unused and (now or candidate):
        raise UsageError("--unused with --now or --next", "One of them", "Run retire once for each")
    with draining() as stop:
        gone = (
            promotion.retire_unused(settings, stop)
            if unused
            else [promotion.retire(settings, stop, now, candidate)]
        )
    print_result({"retired": gone}, json_out, lambda: _show_retired(gone))


def _show_retired(gone: list[str]) -> None:
    if gone:
        print_table("retired", {"physical": ", ".join(gone)})
    else:
        out.print("nothing to retire: every version has an alias")


def list_all(
    store: options.Store = None,
    collection: options.Collection = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Show which version of a collection serves, which is being built, and which is kept."""
    settings = options.settings(config, set, {"store.url": store, "store.collection": collection})
    found = list_versions(settings)
    print_result([one.as_dict() for one in found], json_out, lambda: _show_versions(found))


def _show_versions(found: list[Listed]) -> None:
    """One row a version; where some points of it were mapped, below that how many, from what and by what."""
    rows = [
        (
            one.role,
            one.physical,
            one.model,
            one.encoder_version[:12],
            f"{one.documents:,}",
            f"{one.points:,}",
            f"{one.vector_bytes / 1e6:,.1f} MB",
            one.since[:16].replace("T", " ") or "–",
        )
        for one in found
    ]
    columns = ("role", "collection", "encoder", "version", "documents", "points", "vectors, about", "since")
    print_rows(columns, rows)
    for one in found:
        for version, count in one.by_version.items():
            if version != one.encoder_version:
                bridges = ", ".join(bridge[:12] for bridge in one.bridges)
                out.print(f"{one.role}: {count:,} points are of {version[:12]}, mapped by {bridges}")


def _how(settings: Settings, moved: str | None) -> EncoderConfig:
    """How encoders are run; which they are, the versions' contracts say."""
    return settings.encoder.model_copy(update={"model": moved or DEFAULT_ENCODER, "codes": ""})


def _show_reindexed(done: Reindexed) -> None:
    rows: dict[str, Any] = {"way": str(done.way), "version": done.physical}
    rows |= rows_of(done.ingested) if done.ingested else _mirrored(done.done)
    rows |= {f"points of {version[:12]}": count for version, count in done.points.items()}
    print_table(f"reindexed {done.collection}", rows)


def _mirrored(done: Mirrored) -> dict[str, Any]:
    """What was brought over, zeros left out."""
    names = ("copied", "mapped", "patched", "deleted", "tokens", "left")
    found = {name: value for name in names if (value := getattr(done, name))}
    return {"documents": done.documents} | found | {"rejected": len(done.rejected)}


def _say_what_is_left(done: Reindexed) -> None:
    for one in done.done.rejected[:10]:
        say(f"{one.document_id!r} is left out ({one.reason}): {one.message}")
    if done.limit_reached:
        say("the limit is reached: run again to go on")
    elif done.done.left and not done.done.stopped:
        say(f"{done.done.left} documents changed meanwhile: run again, or let promote bring them over")


def _say_not_carried(lost: Foreign, where: str) -> None:
    """Warn of what other programs would miss."""
    if not lost:
        return
    said = [f"{lost.points:,} points that other programs added"] if lost.points else []
    said += [f"vectors {name!r}" for name in (*lost.vectors, *lost.sparse_vectors)]
    say(f"not brought over: {', '.join(said)}; who wrote them must write them to {where}, too")


def _show_swapped(done: Swapped) -> None:
    rows = {"serving": done.serving, "before": done.before, "changed meanwhile": done.caught_up}
    print_table(f"{done.collection} now is", rows)
