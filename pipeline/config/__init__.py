"""Settings: one TOML file, environment twins, flags on top; frozen once loaded.

A key is `section.name` in the file, `HEADWATER_SECTION__NAME` in the environment. Later wins: file,
environment, flags. `deploy/config.toml` documents every key. Nothing here touches the network or the disk but
the one file, and the environment is read by `load` alone: `Settings()` is the defaults, on every machine.
"""

from __future__ import annotations

from pipeline.config.reading import load
from pipeline.config.sections import (
    DEFAULT_ENCODER,
    ENCODER_DEFAULTS,
    AspectConfig,
    ChunkingConfig,
    DecoderConfig,
    EncoderConfig,
    GateConfig,
    HnswConfig,
    QuantizationConfig,
    RunConfig,
    Settings,
    SourceConfig,
    StoreConfig,
    VersionsConfig,
    WatchConfig,
)

__all__ = [
    "DEFAULT_ENCODER",
    "ENCODER_DEFAULTS",
    "AspectConfig",
    "ChunkingConfig",
    "DecoderConfig",
    "EncoderConfig",
    "GateConfig",
    "HnswConfig",
    "QuantizationConfig",
    "RunConfig",
    "Settings",
    "SourceConfig",
    "StoreConfig",
    "VersionsConfig",
    "WatchConfig",
    "load",
]
