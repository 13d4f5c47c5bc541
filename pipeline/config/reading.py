"""One TOML file, environment twins, flags on top, as one Settings; what is wrong is said by key and place."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource

from pipeline.config.sections import NESTED, PREFIX, AspectConfig, Settings
from pipeline.errors import UsageError


def load(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Read the file, the environment and the flags (`{"store.url": …}`) into one Settings.

    Raises UsageError that names the key, what it got and what is known.
    """
    values: dict[str, Any] = _read_toml(file) if file else {}
    environment = _read_environment()
    _merge(values, environment)
    for key, value in (flags or {}).items():
        _set(values, key.split("."), value)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise UsageError(*_explain(error, file, environment)) from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"config file {file} cannot be read: {error}", "", "Check --config") from None
    except tomllib.TOMLDecodeError as error:
        hint = "Compare it with deploy/config.toml"
        raise UsageError(f"config file {file} is not TOML: {error}", "", hint) from None


def _read_environment() -> dict[str, Any]:
    """Return the twins that are set, nested as in the file; raise UsageError for what only looks like a twin.

    Names without a double underscore are left alone (Kubernetes sets HEADWATER_PORT and the like for a
    service of that name), except a key's own name spelled with single ones.
    """
    twins = {twin.replace(NESTED, "_"): twin for twin in map(_twin, _keys(Settings))}
    for variable in (name.upper() for name in os.environ if name.upper().startswith(PREFIX)):
        meant = twins.get(variable.replace(NESTED, "_"), variable)
        if meant != variable:
            got = f"unknown environment variable {variable}"
            raise UsageError(got, "Two underscores follow a section's name", f"Did you mean {meant}?")
        section, nested, _ = variable.removeprefix(PREFIX).lower().partition(NESTED)
        if nested and section not in Settings.model_fields:
            known, hint = _known(section, Settings)
            raise UsageError(f"unknown section {section!r} in {variable}", f"Known sections: {known}", hint)
    return EnvSettingsSource(Settings)()


def _merge(values: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = dict(value) if isinstance(value, Mapping) else value


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:  # noqa: ANN401 - any setting's value
    *sections, name = path
    inner: Any = values
    for section in sections:
        inner = inner.setdefault(section, {})
        if not isinstance(inner, dict):
            return  # the file has a value where a section belongs; validation will name it
    inner[name] = value


def _explain(error: ValidationError, file: Path | None, environment: Mapping[str, Any]) -> tuple[str, ...]:
    """Turn pydantic's first complaint into our three parts; neither a secret nor a whole section is shown."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = f" in {_twin(path)}" if _holds(environment, path) else f" in {file}" if file else ""
    if first["type"] == "extra_forbidden":
        known, hint = _known(path[-1], _section(path[:-1]))
        kind, place = ("key", f" of [{'.'.join(path[:-1])}]") if path[:-1] else ("section", "")
        return f"unknown {kind} {path[-1]!r}{place}{where}", f"Known {kind}s: {known}", hint
    if first["type"] == "model_type":
        known, _ = _known("", _section(path))
        return f"{'.'.join(path)}{where} is a section and was given a value", f"Its keys: {known}", ""
    shown = isinstance(first["input"], (str, int, float, bool)) and path[-1] not in ("api_key", "token")
    got = f" = {first['input']!r}" if shown else ""
    do = "deploy/config.toml documents every key"
    if first["type"] == "string_pattern_mismatch":
        need = _section(path[:-1]).model_fields[path[-1]].description or ""
        return f"setting {'.'.join(path)}{got}{where}", need, do
    return f"setting {'.'.join(path)}{got}{where}: {first['msg']}", "", do


def _known(name: str, model: type[BaseModel]) -> tuple[str, str]:
    """Return the model's keys as a list to read, and a hint for a name that is none of them."""
    close = difflib.get_close_matches(name, model.model_fields, n=1)
    return ", ".join(sorted(model.model_fields)), f"Did you mean {close[0]!r}?" if close else "Remove it"


def _twin(path: list[str]) -> str:
    return PREFIX + NESTED.join(path).upper()


def _holds(values: Any, path: list[str]) -> bool:  # noqa: ANN401 - a nested dict, or a leaf of it
    for name in path:
        if not isinstance(values, Mapping):
            return True  # the complaint is about a part of this value
        if name not in values:
            return False
        values = values[name]
    return True


def _keys(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Yield every key's path; sections themselves are not keys."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, (*path, name))
        else:
            yield [*path, name]


def _section(path: list[str]) -> type[BaseModel]:
    model: type[BaseModel] = Settings
    names = iter(path)
    for name in names:
        annotation = model.model_fields[name].annotation
        if annotation == dict[str, AspectConfig] and next(names, ""):
            annotation = AspectConfig
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return model
