"""What qdrant-client, gRPC and httpx raise, as our errors: by type and status, in one place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import grpc
import httpx
from pydantic import ValidationError
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from pipeline.errors import (
    HeadwaterError,
    StoreError,
    StoreFull,
    StoreOverloaded,
    StoreUnauthorized,
    StoreUnavailable,
)

MAX_MESSAGE = 500
"""Characters of a server's own message that we pass on."""

_FULL = ("no space left", "out of disk", "insufficient storage", "not enough space")
_TOO_LARGE = ("message length too large", "message larger than max", "payload too large")
_OTHER_PROTOCOL = (
    "WRONG_VERSION_NUMBER",
    "Failed parsing HTTP/2",
    "illegal request line",
    "illegal status line",
)
_STATUS_OF = {
    grpc.StatusCode.CANCELLED: 503,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 503,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
"""gRPC's codes as the HTTP statuses that mean the same."""


class BatchTooLarge(StoreError):
    """The server will never take a request of this size; a smaller one it may."""


def server_error(error: Exception, doing: str, url: str) -> HeadwaterError:
    """Our error for a foreign one: transient ones may be tried again, terminal ones not.

    `doing` says what was tried. Requests, and with them API keys, never get into the message.
    """
    failed = f"cannot {doing}: {url}"
    match error:
        case HeadwaterError():
            return error
        case ResourceExhaustedResponse():
            return _overloaded(failed, str(error), float(error.retry_after_s))
        case UnexpectedResponse():
            status = error.status_code or 0
            return _by_status(failed, status, f"{status} {_phrase(status)}", _rest_message(error), 0.0)
        case ResponseHandlingException(source=Exception() as source):
            return server_error(source, doing, url)
        case grpc.RpcError() if callable(getattr(error, "code", None)):
            return _by_status(failed, *_grpc_status(error))
        case httpx.UnsupportedProtocol() | httpx.TooManyRedirects() | httpx.DecodingError():
            return _no_qdrant(failed, error)
        case httpx.TransportError() | OSError() | grpc.RpcError():
            return _unavailable(failed, f"did not answer ({type(error).__name__}: {error})")
        case grpc.FutureTimeoutError() | grpc.FutureCancelledError():
            return _unavailable(failed, f"did not answer ({type(error).__name__}: {error})")
        case json.JSONDecodeError() | ValidationError() | QdrantException() | ApiException():
            return _no_qdrant(failed, error)
        case httpx.HTTPError() | httpx.InvalidURL() | httpx.StreamError():
            return _no_qdrant(failed, error)
    return StoreError(f"{failed}: {type(error).__name__}: {error}")


def retry_after(value: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> float:
    """Seconds to wait: Retry-After as an integer, a decimal or an HTTP date; 0 where it says nothing."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - now()).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def whole_seconds(
    request: httpx.Request, call_next: Callable[[httpx.Request], httpx.Response]
) -> httpx.Response:
    """A middleware for qdrant-client, which understands only whole seconds in Retry-After."""
    response = call_next(request)
    if "Retry-After" in response.headers:
        response.headers["Retry-After"] = str(math.ceil(retry_after(response.headers["Retry-After"])))
    return response


def _by_status(failed: str, status: int, name: str, message: str, pause: float) -> HeadwaterError:
    told = f"{failed} answered {name}: {message}"
    lowered = message.lower()
    if status == 507 or any(sign in lowered for sign in _FULL):
        return StoreFull(told, "Free disk space on the server", "Free some space and run again")
    if status == 413 or any(sign in lowered for sign in _TOO_LARGE):
        return BatchTooLarge(told, "A smaller request", "Lower store.batch_points")
    if status in (401, 403):
        return StoreUnauthorized(
            told,
            "An API key that may do this",
            "Set HEADWATER_STORE__API_KEY, or store.api_key_file in the configuration",
        )
    if status == 429:
        return _overloaded(failed, message, pause)
    if status == 408 or (status >= 500 and status != 501):
        return _unavailable(failed, f"answered {name}: {message}")
    if 300 <= status < 400:
        return StoreError(told, "The address of the server itself", "Check --store")
    return StoreError(told)


def _overloaded(failed: str, message: str, pause: float) -> StoreOverloaded:
    return StoreOverloaded(
        f"{failed} asks us to slow down: {message}",
        f"A pause of {pause:g} s" if pause else "A pause",
        "Use fewer lanes or smaller batches (run.lanes, store.batch_points)",
        pause,
    )


def _unavailable(failed: str, what: str) -> StoreUnavailable | StoreError:
    if "CERTIFICATE_VERIFY_FAILED" in what:
        return StoreError(
            f"{failed} {what}",
            "A certificate that we trust",
            "Name the file of its authority in store.ca_file, or check the host in --store",
        )
    if any(sign in what for sign in _OTHER_PROTOCOL):
        return StoreError(
            f"{failed} {what}",
            "The port of the protocol that --store names: gRPC and REST have one each, and TLS is for https and grpcs",
            "Check --store, store.grpc_port and store.prefer_grpc",
        )
    return StoreUnavailable(
        f"{failed} {what}",
        "A running Qdrant at that address",
        "Start it, or check --store; its gRPC port is store.grpc_port, and store.prefer_grpc = false does without",
    )


def _no_qdrant(failed: str, error: Exception) -> StoreError:
    return StoreError(
        f"{failed} answered something that is not Qdrant's ({type(error).__name__})",
        "A Qdrant server at that address",
        "Check --store; gRPC and REST have ports of their own",
    )


def _grpc_status(error: grpc.RpcError) -> tuple[int, str, str, float]:
    """HTTP's status for a failed call, gRPC's name for it, the message and the pause."""
    pause = 0.0
    for key, value in error.trailing_metadata() or ():
        if key == "retry-after":
            pause = retry_after(value)
    message = (error.details() or "")[:MAX_MESSAGE]
    code = error.code()
    return _STATUS_OF.get(code, 500), code.name, message, pause


def _rest_message(error: UnexpectedResponse) -> str:
    """The server's own words, without the JSON around them."""
    text = error.content.decode("utf-8", "replace")
    with suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["status"]["error"])
    return text[:MAX_MESSAGE]


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
