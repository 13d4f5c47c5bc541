"""Log lines on stderr, as text or JSON, with run and split ids and without secrets.

structlog formats what goes through the standard library's logging, so that libraries' lines come out in the same form.
`configure` is for processes of our own (the command line, Ray's lanes); without it the lines go wherever the program
around us sends its logging.

Redacted are: the settings' secrets wherever they occur, userinfo and signatures in URLs, and values whose key, or the
word before them, says that they are secret.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

import structlog
from pydantic import BaseModel, SecretStr
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.stdlib import BoundLogger, ProcessorFormatter

from pipeline.config import Settings

HIDDEN = "***"

_SECRET_KEY = re.compile(
    r"(api[_-]?key|access[_-]?key|private[_-]?key|token|password|passwd|secret|authorization|credentials?|signature)$",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"(://)[^/?#\s@]*@")
_QUERY = re.compile(
    r"([?&;](?:[\w-]*(?:signature|credential|token|password|secret|key)|sig)=)[^&;#\s\"']+", re.I
)
_BEARER = re.compile(r"\b((?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.I)
_NAMED = re.compile(
    r"((?:api[_-]?key|access[_-]?key|private[_-]?key|token|password|passwd|secret|authorization|credentials?)"
    r"[\"']?\s*[:=]\s*)(?:\"[^\"]*\"|'[^']*'|(?:bearer\s+|basic\s+)?[^\s\"',;&)}\]]+)",
    re.I,
)
_PATTERNS = ((_USERINFO, rf"\1{HIDDEN}@"), (_QUERY, rf"\1{HIDDEN}"), (_BEARER, rf"\1{HIDDEN}"))
_SHORTEST = 4  # a shorter secret is none, and would take ordinary words with it

_form: Literal["text", "json"] = "text"
_secrets: tuple[str, ...] = ()
_of_process: dict[str, str] = {}  # on every line of this process


class _Event(dict[str, Any]):
    """An event that logging of other programs, which knows nothing of events, shows as a line of text."""

    def __str__(self) -> str:
        rest = (f"{key}={value}" for key, value in self.items() if key != "event")
        return " ".join([str(self["event"]), *rest])


def _as_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ANN401
    return _Event(event)


def logger(name: str) -> BoundLogger:
    """A logger of events: `logger(__name__).warning("lane_lost", why=…)`."""
    return BoundLogger(logging.getLogger(name), [_as_event, ProcessorFormatter.wrap_for_formatter], {})


_log = logger(__name__)


def configure(settings: Settings, write: Callable[[str], None] | None = None) -> None:
    """Write this process's log lines as the settings say, each by one call of `write` (by default to stderr).

    Our own lines from `run.log_level` on, those of libraries from there on too but never below "warning". Safe to
    repeat: the last call counts.
    """
    global _form, _secrets
    _form, _secrets = settings.run.log, tuple(secrets_of(settings))
    level = logging.getLevelNamesMapping()[settings.run.log_level.upper()]
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Lines)]:
        root.removeHandler(handler)
    root.addHandler(_Lines(settings.run.log, write or _to_stderr))
    root.setLevel(max(level, logging.WARNING))
    for ours in ("pipeline", "workers"):
        logging.getLogger(ours).setLevel(level)
    sys.excepthook = lambda *info: _log.critical("crashed", exc_info=info)
    threading.excepthook = lambda died: _log.critical("crashed", exc_info=died[:3], thread=str(died.thread))


def as_json() -> bool:
    """Whether stderr belongs to JSON."""
    return _form == "json"


def set_run(run: str) -> None:
    """Name the run that this process works on in every line from now on; "": none."""
    _of_process.clear()
    if run:
        _of_process["run"] = run


@contextmanager
def about(split: str) -> Iterator[None]:
    """Name the split in the lines of this context; a thread gets its own by `contextvars.copy_context`."""
    with bound_contextvars(split=split):
        yield


def redacted(value: Any) -> Any:  # noqa: ANN401 - anything that a log line may hold
    """The same value without secrets; what JSON has no word for as a string."""
    match value:
        case str():
            return _redacted(value)
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {
                _redacted(str(key)): HIDDEN if item and _SECRET_KEY.search(str(key)) else redacted(item)
                for key, item in value.items()
            }
        case list() | tuple() | set() | frozenset():
            return [redacted(item) for item in value]
        case bytes():
            return _redacted(value.decode("utf-8", "replace"))
        case _:
            return _redacted(str(value))


def secrets_of(settings: Settings) -> Iterable[str]:
    """The values that must not be seen: secret settings, the key in `store.api_key_file`, a password in `store.url`.

    Each as it is, and as URLs and JSON write it.
    """
    found = set(_secret_values(settings))
    with suppress(ValueError):  # the store says what is wrong with its URL, and with its key file
        found.add(urlsplit(settings.store.url).password or "")
    with suppress(OSError, ValueError):
        if settings.store.api_key_file:
            found.add(Path(settings.store.api_key_file).expanduser().read_text("utf-8").strip())
    found |= {unquote(secret) for secret in found}
    found |= {quote(secret, safe="") for secret in found} | {json.dumps(secret)[1:-1] for secret in found}
    return sorted((secret for secret in found if len(secret) >= _SHORTEST), key=len, reverse=True)


def _secret_values(section: BaseModel) -> Iterator[str]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, SecretStr):
            yield value.get_secret_value()
        elif isinstance(value, BaseModel):
            yield from _secret_values(value)


def _redacted(text: str) -> str:
    for secret in _secrets:
        text = text.replace(secret, HIDDEN)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return _NAMED.sub(rf"\1{HIDDEN}", text)


def _to_stderr(line: str) -> None:
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except OSError:
        leave_stderr()


def leave_stderr() -> None:
    """Nobody reads stderr any more: what is written there goes nowhere from now on, and the run goes on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class _Lines(logging.Handler):
    """Formats records, in the thread that logs, and writes each as one line (a text line may end in a traceback)."""

    def __init__(self, form: Literal["text", "json"], write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write
        self.setFormatter(_formatter(form))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a library's arguments that do not fit its message; a run goes on
            line = self.format(
                logging.makeLogRecord({**_plain(record), "msg": f"unreadable: {record.msg!r}"})
            )
        self._write(line)


def _plain(record: logging.LogRecord) -> dict[str, Any]:
    return {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}


def _formatter(form: Literal["text", "json"]) -> ProcessorFormatter:
    render: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=False,
            pad_event_to=0,
            sort_keys=False,
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    return ProcessorFormatter(
        processors=[
            _add_record,
            ProcessorFormatter.remove_processors_meta,
            merge_contextvars,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _redact,
            render,
        ]
    )


def _add_record(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ANN401
    record = event["_record"]
    event.update(level=record.levelname.lower(), logger=record.name, **_of_process)
    return event


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ANN401
    return dict(redacted(event))
