"""The flags that several commands share, and how flags become settings."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import logs
from pipeline.cli.report import print_line
from pipeline.config import Settings, load
from pipeline.errors import UsageError

Uri = Annotated[
    str,
    typer.Argument(
        help="A Parquet, Arrow or Feather file, a glob, a directory, s3://…, or - for an Arrow stream on stdin.",
        metavar="SOURCE",
        show_default=False,
    ),
]
Id = Annotated[str | None, typer.Option("--id", help="The column with the document's id.", metavar="COLUMN")]
Text = Annotated[
    str | None,
    typer.Option("--text", help="The text column; several, comma-separated, are joined with a blank line."),
]
JudgedText = Annotated[
    str | None,
    typer.Option(
        "--text",
        help="The text column; several, comma-separated, are joined. By default title,text where there is a title, "
        "while ingest takes text alone.",
    ),
]
Template = Annotated[
    str | None,
    typer.Option("--template", help='Make the text from columns: "{title}: {price} EUR\\n{body}".'),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="A model folder, an exported one, a hub id, or package:NAME.",
        metavar="FOLDER_OR_ID",
    ),
]
Codes = Annotated[
    str | None,
    typer.Option(
        "--codes",
        help="Store binary codes: a folder that `headwater codes train` wrote.",
        metavar="DIR",
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        "--store", help="edge:DIR, local:DIR, http(s)://HOST:PORT or grpc(s)://HOST:PORT.", metavar="URL"
    ),
]
Collection = Annotated[
    str | None, typer.Option("--collection", help="The collection's name: an alias that an upgrade can swap.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="A TOML file; deploy/config.toml documents every key.", metavar="FILE"),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting, e.g. --set chunking.max_tokens=128.", metavar="KEY=VALUE"),
]
Snapshot = Annotated[
    bool | None,
    typer.Option(
        "--snapshot",
        help="The source is all there is: stored documents that it lacks are removed.",
        show_default=False,
    ),
]
MaxDeletes = Annotated[
    str | None,
    typer.Option(
        "--max-deletes",
        help="The most that may be removed, 10% of what is stored or a number.",
        metavar="N|N%",
    ),
]
Watched = Annotated[
    str,
    typer.Argument(
        help="A folder, a glob, a prefix like s3://bucket/docs/, a Delta Lake table, - for an Arrow stream "
        "on stdin, or grpc://HOST:PORT to listen as an Arrow Flight endpoint.",
        metavar="SOURCE",
        show_default=False,
    ),
]
MaxLatency = Annotated[
    str | None,
    typer.Option(
        "--max-latency", help="How long changes are gathered at most: 2s, 500ms.", metavar="DURATION"
    ),
]
Queries = Annotated[Path, typer.Option("--queries", help="A Parquet file with columns id and text.")]
Qrels = Annotated[
    Path, typer.Option("--qrels", help="A Parquet file with query_id, document_id and relevance.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def settings(config: Path | None, overrides: list[str] | None, flags: Mapping[str, Any]) -> Settings:
    """Load the settings; flags that were not given do not count, `--set` is weaker than a flag of its own.

    From here on log lines are written as they say.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    loaded = load(config, {**dict(map(_override, overrides or [])), **given})
    logs.configure(loaded, print_line)
    return loaded


def _override(text: str) -> tuple[str, Any]:
    """Read KEY=VALUE; the value is TOML where it parses as TOML, else a string."""
    key, separator, value = text.partition("=")
    if not separator or "." not in key:
        raise UsageError(
            f"--set {text!r}", "--set section.key=value", "For example --set chunking.max_tokens=128"
        )
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value
