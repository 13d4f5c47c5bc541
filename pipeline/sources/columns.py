"""Which column of a file means what: the configured mapping, checked against the file's own columns."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import pyarrow as pa

from pipeline.config import SourceConfig
from pipeline.errors import UsageError
from pipeline.sources.template import Template
from pipeline.sources.values import decoded_type, is_binary, is_string, no_json


@dataclass(frozen=True)
class Columns:
    """The roles of a file's columns; "" is a role nobody has. `metadata` is sorted by name.

    `text` is empty where a `template` makes the text.
    """

    id: str
    text: tuple[str, ...]
    template: Template | None
    metadata: tuple[str, ...]
    sequence: str
    operation: str
    namespace: str
    namespace_column: str

    @property
    def key(self) -> tuple[str, ...]:
        """What says which document a row is, and which of its versions."""
        return tuple(dict.fromkeys(filter(None, (self.id, self.namespace_column, self.sequence))))

    @property
    def all(self) -> tuple[str, ...]:
        """Every column that is read, once."""
        template = self.template.columns if self.template else ()
        named = (*self.key, self.operation, *self.text, *template, *self.metadata)
        return tuple(dict.fromkeys(filter(None, named)))


def resolve(schema: pa.Schema, config: SourceConfig, where: str) -> Columns:
    """Map the columns of `where` (a file, for messages) as configured.

    With a template, a column is text and so kept out of the metadata only if it is listed in `text` as well
    as used in the template; the template's other columns are metadata too. Raises UsageError for a column
    that is missing, there twice, or of a type its role cannot have.
    """
    if config.namespace and config.namespace_column:
        raise UsageError(
            f"namespace {config.namespace!r} and namespace_column {config.namespace_column!r} are both set",
            "One namespace for the source, or a column that names it",
            "Remove one of them",
        )
    template = Template.parse(config.template) if config.template else None
    text = tuple(name for name in config.text if name in template.columns) if template else config.text
    singles = (config.id, config.sequence, config.operation, config.namespace_column)
    metadata = config.metadata
    if metadata is None:
        metadata = tuple(name for name in schema.names if name not in (*singles, *text))
    columns = Columns(
        id=config.id,
        text=() if template else text,
        template=template,
        metadata=tuple(sorted(set(metadata))),
        sequence=config.sequence,
        operation=config.operation,
        namespace=config.namespace,
        namespace_column=config.namespace_column,
    )
    _check(schema, columns, where)
    return columns


def check_columns(schema: pa.Schema, config: SourceConfig, where: str) -> None:
    """Raise UsageError as `resolve` does."""
    resolve(schema, config, where)


def _check(schema: pa.Schema, columns: Columns, where: str) -> None:
    for name in columns.all:
        found = schema.names.count(name)
        if found == 0:
            close = difflib.get_close_matches(name, schema.names, n=1)
            raise UsageError(
                f"{where} has no column {name!r}",
                f"Its columns are {', '.join(schema.names) or 'none'}",
                f"Did you mean {close[0]!r}?" if close else "Name the columns with --id and --text",
            )
        if found > 1:
            raise UsageError(
                f"{where} has {found} columns named {name!r}",
                "One column of a name",
                "Rename them in the file",
            )
    _demand(schema, columns.id, "id", "strings or integers", where)
    for name in (*columns.text, columns.namespace_column, columns.operation):
        _demand(schema, name, "text" if name in columns.text else "name", "strings", where)
    _demand(schema, columns.sequence, "sequence", "integers, timestamps or dates", where)
    for name in (*columns.metadata, *(columns.template.columns if columns.template else ())):
        _demand(schema, name, "metadata", "values that JSON can hold", where)


def _demand(schema: pa.Schema, name: str, role: str, need: str, where: str) -> None:
    if not name or _fits(decoded_type(schema.field(name).type), role):
        return
    advice = {
        "text": "Turn it into text with --template",
        "metadata": "Leave it out by naming the others: --set source.metadata=NAME,NAME",
    }
    raise UsageError(
        f"column {name!r} of {where} has type {schema.field(name).type}",
        f"A column used as {role} holds {need}",
        advice.get(
            role, f"Choose another column, or convert it in the file, for example to {need.split()[0]}"
        ),
    )


def _fits(kind: pa.DataType, role: str) -> bool:
    text = is_string(kind) or is_binary(kind) or pa.types.is_null(kind)
    match role:
        case "id":
            return text or pa.types.is_integer(kind)
        case "text" | "name":
            return text
        case "sequence":
            number = pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)
            return number or pa.types.is_null(kind)
    return no_json(kind) is None
