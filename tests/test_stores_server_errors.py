"""Every error that the libraries under the server store can raise has a place of its own among ours."""

from __future__ import annotations

import datetime
import inspect

import grpc
import httpx
import pytest
import qdrant_client.common.client_exceptions as client_exceptions
import qdrant_client.http.exceptions as http_exceptions
from pydantic import ValidationError
from qdrant_client import models

from pipeline.errors import (
    HeadwaterError,
    StoreError,
    StoreFull,
    StoreOverloaded,
    StoreUnauthorized,
    StoreUnavailable,
)
from pipeline.stores.server_errors import BatchTooLarge, retry_after, server_error


def test_retry_after_in_all_its_forms():
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    assert retry_after("7") == 7
    assert retry_after("0.5") == 0.5
    assert retry_after("Thu, 01 Jan 2026 00:00:30 GMT", lambda: now) == 30
    assert retry_after("Thu, 01 Jan 2026 00:00:00 GMT", lambda: now.replace(year=2027)) == 0
    for nothing in ("", "soon", "-3", "nan", "inf"):
        assert retry_after(nothing) == 0


def exceptions_of(module) -> list[type[Exception]]:
    return [one for _, one in inspect.getmembers(module, inspect.isclass) if issubclass(one, Exception)]


class Rpc(grpc.RpcError):
    def __init__(self, code):
        self._code = code

    def code(self):
        return self._code

    def details(self):
        return "why"

    def trailing_metadata(self):
        return ()


def instance(kind: type[Exception]) -> Exception:
    if kind is http_exceptions.UnexpectedResponse:
        return kind(418, "teapot", b"{}", httpx.Headers())
    if kind is http_exceptions.ResponseHandlingException:
        return kind(httpx.ConnectError("refused"))
    if kind is client_exceptions.ResourceExhaustedResponse:
        return kind("slow", 3)
    if issubclass(kind, httpx.HTTPStatusError):
        return kind("x", request=httpx.Request("GET", "http://x"), response=httpx.Response(500))
    if issubclass(kind, httpx.StreamError) and kind is not httpx.StreamError:
        return kind("x") if "message" in inspect.signature(kind).parameters else kind()
    return kind("x")


FOREIGN = [
    *exceptions_of(http_exceptions),
    *exceptions_of(client_exceptions),
    *(one for one in exceptions_of(httpx) if one is not httpx.CookieConflict),
    grpc.RpcError,
    grpc.FutureTimeoutError,
    grpc.FutureCancelledError,
]


@pytest.mark.parametrize("kind", FOREIGN, ids=lambda kind: kind.__name__)
def test_every_exception_of_the_libraries_has_a_place_of_its_own(kind):
    ours = server_error(instance(kind), "do it", "http://x")
    assert isinstance(ours, HeadwaterError)
    assert "cannot do it" in ours.got
    # The last resort of the map names the foreign class after a colon; nothing known may end there.
    assert f": {kind.__name__}: " not in ours.got


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda code: code.name)
def test_every_status_of_grpc_has_a_place(code):
    from pipeline.stores.server_errors import _STATUS_OF

    if code is grpc.StatusCode.OK:
        return
    assert code in _STATUS_OF
    ours = server_error(Rpc(code), "do it", "grpc://x")
    passing = {"CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
    assert isinstance(ours, StoreUnavailable) == (code.name in passing)
    assert isinstance(ours, StoreUnauthorized) == (code.name in {"UNAUTHENTICATED", "PERMISSION_DENIED"})
    assert isinstance(ours, StoreOverloaded) == (code.name == "RESOURCE_EXHAUSTED")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (301, StoreError),
        (400, StoreError),
        (404, StoreError),
        (408, StoreUnavailable),
        (409, StoreError),
        (413, BatchTooLarge),
        (422, StoreError),
        (429, StoreOverloaded),
        (500, StoreUnavailable),
        (501, StoreError),
        (502, StoreUnavailable),
        (503, StoreUnavailable),
        (504, StoreUnavailable),
        (507, StoreFull),
    ],
)
def test_every_status_of_http_has_a_place(status, expected):
    error = http_exceptions.UnexpectedResponse(status, "", b'{"status": {"error": "why"}}', httpx.Headers())
    ours = server_error(error, "do it", "http://x")
    assert type(ours) is expected
    assert "why" in ours.got


def test_an_unknown_certificate_is_not_waited_for():
    error = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")
    ours = server_error(http_exceptions.ResponseHandlingException(error), "do it", "https://x")
    assert type(ours) is StoreError
    assert "store.ca_file" in ours.do


def test_an_answer_that_does_not_parse_is_no_qdrant():
    with pytest.raises(ValidationError) as caught:
        models.CollectionsResponse.model_validate({})
    wrapped = http_exceptions.ResponseHandlingException(caught.value)
    assert "not Qdrant's" in server_error(wrapped, "do it", "http://x").got
