"""The sections of the settings, key by key; `deploy/config.toml` documents them."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"

PREFIX = "HEADWATER_"
NESTED = "__"


Long = Literal[
    "split",
    "error",
    "truncate",
    "pcw",
    "gp",
    "rp",
    "pi",
    "pi-dynamic",
    "ntk",
    "self-extend",
    "late-chunking",
    "late-chunking:gp",
    "late-chunking:rp",
    "late-chunking:pi",
    "late-chunking:pi-dynamic",
    "late-chunking:ntk",
    "late-chunking:self-extend",
]
"""What is done with documents that are longer than the encoder's window."""

IndexKind = Literal["keyword", "integer", "float", "bool", "datetime", "text", "uuid"]


class Section(BaseModel):
    """A section of the configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceConfig(Section):
    """Where documents are read and which columns mean what."""

    format: Literal["auto", "parquet", "arrow", "arrows", "feather"] = "auto"
    id: str = "id"
    text: tuple[str, ...] = Field(default=("text",), min_length=1)
    template: str = ""
    metadata: tuple[str, ...] | None = None  # None: every column that has no other role
    sequence: str = ""
    operation: str = ""
    namespace: str = ""  # one namespace for the whole source
    namespace_column: str = ""  # or a column (a tenant) that names it
    snapshot: bool = False  # the source is all there is: what it lacks is removed
    max_deletes: str = Field(
        default="10%",
        pattern=r"^(\d+|(100|\d?\d)(\.\d+)?%)$",
        description="A number of documents, as 100, or a share of all, as 2.5%",
    )
    batch_rows: int = Field(default=256, ge=1)
    batch_bytes: int = Field(default=8 << 20, ge=1 << 10)

    @field_validator("text", "metadata", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file, environment or flag held
        """Accept "title,text" for ("title", "text"), and a JSON list where a name holds a comma."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("max_deletes", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file, environment or flag held
        """Accept a number for its digits."""
        return str(value) if isinstance(value, int) else value


class ChunkingConfig(Section):
    """How documents are cut into chunks."""

    format: Literal["plain", "markdown"] = "plain"
    max_tokens: int = Field(default=0, ge=0)  # 0: as many as the encoder takes
    overlap_tokens: int = Field(default=0, ge=0)


class DecoderConfig(Section):
    """How a decoder-only language model is made an encoder."""

    prompt: str = ""  # a prompt's name, or a template with {text}; "": the text alone
    token_prepending: bool = False
    start: int = Field(default=1, ge=0)
    exit: int = Field(default=0, ge=0)  # 0: after a fifth of the layers
    out_layer: int = -1  # -1: all layers; -2: all but the last, and so on
    pooling: Literal["auto", "last", "mean", "weighted-mean", "eos", "latent-attention", "multi-layer"] = (
        "auto"
    )
    attention: Literal["auto", "causal", "bidirectional"] = "auto"


class EncoderConfig(Section):
    """Which model makes the vectors, and how it is run."""

    model: str = DEFAULT_ENCODER
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    max_tokens: int = Field(default=0, ge=0)  # 0: what the model's own configuration says
    document_prompt: str | None = None  # None: what the model's own configuration says
    query_prompt: str | None = None
    dims: int = Field(default=0, ge=0)  # 0: all of a vector
    layers: int = Field(default=0, ge=0)  # 0: all of the model
    long: Long = "split"
    attention_scaling: bool = False
    codes: str = ""  # a folder that `headwater codes train` wrote; "": float vectors are stored
    provider: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=0, ge=0)  # 0: one per core
    batch_tokens: int = Field(default=0, ge=0)  # 0: what the provider runs fastest with
    cache: str = ""  # "": $XDG_CACHE_HOME/headwater/encoders
    decoder: DecoderConfig = DecoderConfig()


_HOW = frozenset({"provider", "threads", "batch_tokens", "cache"})

ENCODER_DEFAULTS = {
    name: field.default for name, field in EncoderConfig.model_fields.items() if name not in _HOW
}
"""What says which encoder it is, as it is where nothing is said; all other keys say how it is run here and now."""


class AspectConfig(Section):
    """Another vector of each point: of another size of the main encoder, or of another encoder.

    What is unset is as the main encoder has it, or where another `model` is named, as that has it by itself. An aspect
    gets the main encoder's chunks: that documents are refused or cut for being long is none of its business.
    """

    model: str = ""  # "": the main encoder's
    precision: Literal["fp32", "fp16", "int8"] | None = None
    max_tokens: int | None = Field(default=None, ge=0)
    document_prompt: str | None = None
    query_prompt: str | None = None
    dims: int | None = Field(default=None, ge=0)
    layers: int | None = Field(default=None, ge=0)
    long: Long | None = None
    attention_scaling: bool | None = None

    def encoder(self, main: EncoderConfig) -> EncoderConfig:
        """The settings of this aspect's encoder, run as the main one is."""
        said = {name: value for name, value in self if value is not None}
        if self.model:
            return main.model_copy(update=ENCODER_DEFAULTS | said)
        cut_before = {"long": "split"} if main.long in ("error", "truncate") else {}
        return main.model_copy(update=cut_before | said | {"model": main.model})


class HnswConfig(Section):
    """The graph index; empty values leave the store's default."""

    m: int | None = Field(default=None, ge=0)
    ef_construct: int | None = Field(default=None, ge=4)
    on_disk: bool | None = None


class QuantizationConfig(Section):
    """Compressed vectors next to the full ones."""

    kind: Literal["none", "scalar", "binary", "product", "turbo"] = "none"
    bits: float | None = None  # binary: 1, 1.5, 2; turbo: 1, 1.5, 2, 4, 8
    compression: Literal["x4", "x8", "x16", "x32", "x64"] = "x16"  # product
    quantile: float | None = Field(default=None, gt=0, le=1)  # scalar
    always_ram: bool | None = None


class StoreConfig(Section):
    """Which collection of which store is kept in step."""

    url: str = ""
    collection: str = ""
    profile: Literal["plain", "langchain", "llamaindex", "haystack"] = "plain"
    vector_name: str = ""
    keep_vectors: bool = True  # beside codes
    oversampling: float = Field(default=8.0, ge=1, le=100)
    code_queries: bool = False
    sparse_vector: str = ""  # declare a slot for a sparse vector of this name
    distance: Literal["cosine", "dot", "euclid"] = "cosine"
    on_disk_vectors: bool | None = None
    on_disk_payload: bool | None = None
    payload_indexes: dict[str, IndexKind] = {}
    batch_points: int = Field(default=256, ge=1)
    requests: int = Field(default=4, ge=1, le=64)
    timeout_s: float = Field(default=60.0, gt=0)
    retries: int = Field(default=8, ge=0)
    api_key: SecretStr = SecretStr("")
    api_key_file: str = ""
    prefer_grpc: bool = True
    grpc_port: int = Field(default=6334, ge=1, le=65535)
    ca_file: str = ""
    hnsw: HnswConfig = HnswConfig()
    quantization: QuantizationConfig = QuantizationConfig()

    @field_validator("payload_indexes")
    @classmethod
    def _plain_names(cls, value: dict[str, IndexKind]) -> dict[str, IndexKind]:
        """Refuse paths of the payload: a key names a metadata field, and its place in the payload is ours."""
        for name in value:
            if name.startswith(("metadata.", "headwater.")):
                raise ValueError(f"{name!r} is a place in the payload; name the metadata field alone")
        return value

    @field_validator("payload_indexes", mode="before")
    @classmethod
    def _indexes(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file, environment or flag held
        """Accept "year=integer,author=keyword" and a JSON object for a table."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("{"):
            return json.loads(value)
        pairs = (part.partition("=") for part in value.split(",") if part.strip())
        return {name.strip(): kind.strip() for name, _, kind in pairs}


class RunConfig(Section):
    """How a run is executed and where it remembers what is done."""

    id: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$|^$",
        description="At most 64 letters, digits, dots, underscores and hyphens, a letter or digit first",
    )
    executor: Literal["local", "ray"] = "local"
    lanes: int = Field(default=0, ge=0)  # 0: one on a machine without a GPU, else one per GPU
    window_tokens: int = Field(default=0, ge=0)  # 0: sixteen batches
    queue_bytes: int = Field(default=16 << 20, ge=1 << 16)
    commit_every_s: float = Field(default=2.0, ge=0)
    split_deadline_s: float = Field(default=3600.0, gt=0)
    split_attempts: int = Field(default=3, ge=1)
    lease_s: float = Field(default=15.0, ge=0, le=86400)  # 0: no lease
    state: str = ""  # "": in the store's folder, else $XDG_STATE_HOME/headwater
    metrics_port: int = Field(default=0, ge=0, le=65535)  # 0: none
    metrics_file: str = ""
    log: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "warning"


class WatchConfig(Section):
    """How a source without an end is followed."""

    max_latency_s: float = Field(default=2.0, gt=0)
    token: SecretStr = SecretStr("")
    tls_cert: str = ""
    tls_key: str = ""
    max_message_bytes: int = Field(default=16 << 20, ge=1 << 16, le=1 << 30)

    @field_validator("max_latency_s", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file, environment or flag held
        """Accept "2s", "500ms" and "1m" for seconds."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m)", value) if isinstance(value, str) else None
        return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60}[match[2]] if match else value


class VersionsConfig(Section):
    """How long what an upgrade has replaced is kept, and how long a swap waits for runs to end."""

    keep_s: float = Field(default=604800.0, ge=0)
    wait_s: float = Field(default=60.0, ge=0)


class GateConfig(Section):
    """What a version must show before readers are moved to it."""

    sample: int = Field(default=400, ge=1)
    least: int = Field(default=20, ge=2)
    tolerance: float = Field(default=0.01, ge=0, lt=1)
    ann_recall: float = Field(default=0.95, ge=0, le=1)
    max_latency_s: float = Field(default=1.0, gt=0)


class Settings(BaseSettings):
    """Everything a run needs to know; frozen, comparable, picklable."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter=NESTED,
        enable_decoding=False,  # "title,text" and JSON are both read by the sections' own validators
    )

    source: SourceConfig = SourceConfig()
    chunking: ChunkingConfig = ChunkingConfig()
    encoder: EncoderConfig = EncoderConfig()
    aspects: dict[str, AspectConfig] = {}  # by the name of their vector
    store: StoreConfig = StoreConfig()
    run: RunConfig = RunConfig()
    watch: WatchConfig = WatchConfig()
    gate: GateConfig = GateConfig()
    versions: VersionsConfig = VersionsConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only values given to the constructor; `load` merges the file, the environment and the flags."""
        return (init_settings,)
