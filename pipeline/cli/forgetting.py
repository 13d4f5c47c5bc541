"""The command `headwater forget`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeline import forget as forgetting
from pipeline.cli import options
from pipeline.cli.report import print_json, print_result, print_table, say
from pipeline.errors import UsageError
from pipeline.ingest import state_folder
from pipeline.stores import Subject


def forget(
    document: Annotated[str | None, typer.Option("--document", help="The id of a document.")] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", help="The document's namespace; as configured if not given.")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="A namespace: all of its documents.", metavar="NAMESPACE")
    ] = None,
    lift: Annotated[
        bool, typer.Option("--lift", help="Let it be indexed again; brings nothing back.")
    ] = False,
    store: options.Store = None,
    collection: options.Collection = None,
    config: options.Config = None,
    set: options.Set = None,
    json_out: options.Json = False,
) -> None:
    """Remove a document or a tenant from every version of a collection, keep it out, and prove it."""
    if (document is None) == (tenant is None) or (tenant is not None and namespace is not None):
        raise UsageError(
            "--document and --tenant, or neither, or a --namespace beside --tenant",
            "One document, or one tenant",
            "headwater forget --document ID [--namespace NAMESPACE] … or headwater forget --tenant NAMESPACE …",
        )
    flags = {"store.url": store, "store.collection": collection, "source.namespace": namespace}
    settings = options.settings(config, set, flags)
    subject: Subject = (settings.source.namespace if tenant is None else tenant, document)
    if lift:
        lifted = forgetting.lift(settings, subject)
        if json_out:
            print_json({"lifted": lifted})
        say("it may be indexed again" if lifted else "it was not suppressed by itself: nothing was lifted")
        return
    found = forgetting.forget(settings, subject, state_folder(settings))
    shown: dict[str, Any] = {
        place.name: f"{place.before} → {place.after} {place.kind}" for place in found.places
    }
    shown |= {"suppressed": "from now on" if found.suppressed else "no", "left": found.left}
    print_result(found.as_dict(), json_out, lambda: print_table(f"forgotten in {found.collection}", shown))
    if found.left or not found.suppressed:
        raise typer.Exit(1)
