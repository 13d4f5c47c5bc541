"""qdrant-client for a server: addresses, keys, certificates."""

from __future__ import annotations

import math
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

from qdrant_client import QdrantClient

from pipeline.config import StoreConfig
from pipeline.errors import UsageError
from pipeline.stores.server_errors import whole_seconds


def server_client(place: SplitResult, config: StoreConfig, over_grpc: bool) -> QdrantClient:
    """A client for `place`, which is first spoken to by its first call.

    Raises UsageError for a key or certificate file that cannot be read.
    """
    tls = place.scheme in ("https", "grpcs")
    host = f"[{place.hostname}]" if ":" in (place.hostname or "") else place.hostname
    direct = place.scheme in ("grpc", "grpcs")
    port = place.port if place.port and not direct else 6333
    extra: dict[str, Any] = {}
    if config.ca_file:
        extra["verify"] = _tls_context(config.ca_file)
    client = QdrantClient(
        url=f"{'https' if tls else 'http'}://{host}:{port}{'' if direct else place.path.rstrip('/')}",
        grpc_port=place.port or config.grpc_port if direct else config.grpc_port,
        prefer_grpc=over_grpc,
        api_key=_api_key(config) or None,
        timeout=math.ceil(config.timeout_s),
        grpc_options=_grpc_options(config.ca_file),
        check_compatibility=False,  # asks over REST, in a thread, and warns where only gRPC is open
        **extra,
    )
    client.http.client.add_middleware(whole_seconds)
    return client


def _api_key(config: StoreConfig) -> str:
    # A newline at the end comes with secrets that were made from a file, and is no part of them.
    given = config.api_key.get_secret_value().strip()
    if given or not config.api_key_file:
        return given
    return _read(config.api_key_file, "store.api_key_file").decode("utf-8").strip()


def _grpc_options(ca_file: str) -> dict[str, Any]:
    # gRPC's own pauses between reconnections start at a second and grow to two minutes; ours are in `_pause`.
    options: dict[str, Any] = {
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": 2000,
    }
    if ca_file:
        options["root_certificates"] = _read(ca_file, "store.ca_file")
    return options


def _tls_context(ca_file: str) -> ssl.SSLContext:
    _read(ca_file, "store.ca_file")
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        raise UsageError(
            f"store.ca_file {ca_file} holds no certificates: {error.reason}",
            "A PEM file",
            "Check store.ca_file",
        ) from None


def _read(file: str, setting: str) -> bytes:
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise UsageError(
            f"{setting} {file} cannot be read: {error.strerror}", "A file we may read", f"Check {setting}"
        ) from None
