"""Settings: one TOML file, environment twins, flags on top; frozen once loaded.

A key is `section.name` in the file, `HEADWATER_SECTION__NAME` in the environment. Later wins: file, environment,
flags. `deploy/config.toml` documents every key. Nothing here touches the network or the disk but the one file.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline.errors import UsageError

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


class Section(BaseModel):
    """A section of the configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceConfig(Section):
    """Where documents are read and which columns mean what."""

    format: Literal["auto", "parquet", "arrow", "arrows", "feather"] = "auto"
    id: str = "id"
    text: tuple[str, ...] = ("text",)
    template: str = ""
    metadata: tuple[str, ...] | None = None  # None: every column that has no other role
    sequence: str = ""
    operation: str = ""
    namespace: str = ""  # one namespace for the whole source
    namespace_column: str = ""  # or a column (a tenant) that names it
    batch_rows: int = Field(256, ge=1)
    batch_bytes: int = Field(8 << 20, ge=1 << 10)

    @field_validator("text", "metadata", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file, environment or flag held
        """Accept "title,text" for ("title", "text")."""
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


class ChunkingConfig(Section):
    """How documents are cut into chunks."""

    format: Literal["plain", "markdown"] = "plain"
    max_tokens: int = Field(0, ge=0)  # 0: as many as the encoder takes
    overlap_tokens: int = Field(0, ge=0)


class EncoderConfig(Section):
    """Which model makes the vectors, and how it is run."""

    model: str = DEFAULT_ENCODER
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    max_tokens: int = Field(0, ge=0)  # 0: what the model's own configuration says
    document_prompt: str | None = None  # None: what the model's own configuration says
    query_prompt: str | None = None
    provider: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(0, ge=0)  # 0: one per core
    batch_tokens: int = Field(16384, ge=1)
    cache: str = ""  # "": $XDG_CACHE_HOME/headwater/encoders


class HnswConfig(Section):
    """The graph index; empty values leave the store's default."""

    m: int | None = Field(None, ge=0)
    ef_construct: int | None = Field(None, ge=4)
    on_disk: bool | None = None


class QuantizationConfig(Section):
    """Compressed vectors next to the full ones."""

    kind: Literal["none", "scalar", "binary", "product", "turbo"] = "none"
    bits: float | None = None  # binary: 1, 1.5, 2; turbo: 1, 1.5, 2, 4, 8
    compression: Literal["x4", "x8", "x16", "x32", "x64"] = "x16"  # product
    quantile: float | None = Field(None, gt=0, le=1)  # scalar
    always_ram: bool | None = None


class StoreConfig(Section):
    """Which collection of which store is kept in step."""

    url: str = ""
    collection: str = ""
    vector_name: str = ""
    sparse_vector: str = ""  # declare a slot for a sparse vector of this name
    distance: Literal["cosine", "dot", "euclid"] = "cosine"
    on_disk_vectors: bool | None = None
    on_disk_payload: bool | None = None
    payload_indexes: dict[str, Literal["keyword", "integer", "float", "bool", "datetime", "text", "uuid"]] = {}
    batch_points: int = Field(256, ge=1)
    timeout_s: float = Field(60.0, gt=0)
    retries: int = Field(6, ge=0)
    api_key: SecretStr = SecretStr("")
    api_key_file: str = ""
    prefer_grpc: bool = True
    grpc_port: int = Field(6334, ge=1, le=65535)
    ca_file: str = ""
    hnsw: HnswConfig = HnswConfig()
    quantization: QuantizationConfig = QuantizationConfig()


class RunConfig(Section):
    """How a run is executed and where it remembers what is done."""

    executor: Literal["local", "ray"] = "local"
    lanes: int = Field(0, ge=0)  # 0: one on a machine without a GPU, else one per GPU
    window_tokens: int = Field(65536, ge=1)
    queue_bytes: int = Field(64 << 20, ge=1 << 16)
    commit_every_s: float = Field(2.0, ge=0)
    split_deadline_s: float = Field(3600.0, gt=0)
    split_attempts: int = Field(3, ge=1)
    state: str = ""  # "": beside an edge store, else $XDG_STATE_HOME/headwater


class Settings(BaseSettings):
    """Everything a run needs to know; frozen, comparable, picklable."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="HEADWATER_", env_nested_delimiter="__"
    )

    source: SourceConfig = SourceConfig()
    chunking: ChunkingConfig = ChunkingConfig()
    encoder: EncoderConfig = EncoderConfig()
    store: StoreConfig = StoreConfig()
    run: RunConfig = RunConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values given to the constructor, then the environment; the file is merged by `load`."""
        return (init_settings, env_settings)


def load(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Read the file, the environment and the flags (`{"store.url": …}`) into one Settings.

    Raises UsageError that names the key, what it got and what is known.
    """
    values: dict[str, Any] = _read_toml(file) if file else {}
    try:
        environment = Settings().model_dump(exclude_unset=True)
        _merge(values, environment)
        for key, value in (flags or {}).items():
            _set(values, key.split("."), value)
        return Settings.model_validate(values)
    except ValidationError as error:
        raise UsageError(*_explain(error, file)) from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"config file {file} cannot be read: {error}", "A TOML file", "Check --config") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"config file {file} is not TOML: {error}", "", "Compare it with deploy/config.toml") from None


def _merge(values: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = dict(value) if isinstance(value, Mapping) else value


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:  # noqa: ANN401 - any setting's value
    for name in path[:-1]:
        values = values.setdefault(name, {})
    values[path[-1]] = value


def _explain(error: ValidationError, file: Path | None) -> tuple[str, str, str]:
    """Turn pydantic's first complaint into our three parts."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = f" ({file} or environment)" if file else ""
    if first["type"] == "extra_forbidden":
        known = sorted(_section(path[:-1]).model_fields)
        close = difflib.get_close_matches(path[-1], known, n=1)
        place = f" in [{'.'.join(path[:-1])}]" if path[:-1] else ""
        hint = f"Did you mean {close[0]!r}?" if close else "Remove it"
        return f"unknown key {path[-1]!r}{place}{where}", f"Known keys: {', '.join(known)}", hint
    got = "" if isinstance(first["input"], (dict, SecretStr)) else f" = {first['input']!r}"
    return f"setting {'.'.join(path)}{got}{where}: {first['msg']}", "", "deploy/config.toml documents every key"


def _section(path: list[str]) -> type[BaseModel]:
    model: type[BaseModel] = Settings
    for name in path:
        annotation = model.model_fields[name].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return model
