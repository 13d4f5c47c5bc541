"""Sources in an object store: the real S3 client of pyarrow against a small server that speaks its protocol."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import SourceConfig
from pipeline.errors import SourceError, UsageError
from pipeline.sources import open_source, read_split


class Bucket(BaseHTTPRequestHandler):
    """One bucket, `docs`: HEAD, ranged GET and ListObjectsV2."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}

    def log_message(self, *_) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        if bucket != "docs" or (key and key not in self.objects):
            self._send(404, b"")
        elif key:
            self._object(self.objects[key])
        elif self.command == "HEAD":
            self._send(200, b"")
        else:
            self._list(parse_qs(parts.query, keep_blank_values=True))

    def _object(self, content: bytes) -> None:
        wanted = self.headers.get("Range")
        if not wanted:
            return self._send(200, content)
        first, last = wanted.removeprefix("bytes=").split("-")
        part = content[int(first) : int(last) + 1]
        return self._send(
            206, part, ("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        )

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        keys = keys[: int(query.get("max-keys", ["1000"])[0])]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size>"
            "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>{len(keys)}</KeyCount>{entries}"
        self._send(200, (body + "</ListBucketResult>").encode(), ("Content-Type", "application/xml"))

    def _send(self, status: int, content: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def parquet(*ids: str) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"id": list(ids), "text": ["x"] * len(ids)}), out, row_group_size=1)
    return out.getvalue()


def arrow(*ids: str) -> bytes:
    out = io.BytesIO()
    table = pa.table({"id": list(ids), "text": ["x"] * len(ids)})
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


@pytest.fixture
def options(monkeypatch) -> Iterator[str]:
    pytest.importorskip("pyarrow._s3fs")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    Bucket.objects = {
        "in/lang=en/a b.parquet": parquet("1", "2"),
        "in/lang=de/c.parquet": parquet("1", "3"),
        "in/lang=de/d.arrow": arrow("4"),
        "in/_SUCCESS": b"",
        "broken.parquet": b"PAR1 and no more",
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"?scheme=http&region=eu-west-1&endpoint_override=127.0.0.1%3A{server.server_port}"
        server.shutdown()


def documents(uri: str, scratch) -> list[tuple[str, str]]:
    source = open_source(uri, SourceConfig(), scratch)
    return [
        (row["document_id"], row["metadata"])
        for split in source.splits
        for batch in read_split(split, SourceConfig())
        for row in batch.documents.to_pylist()
    ]


def test_a_prefix_a_glob_and_an_object(options, tmp_path):
    german = [("3", '{"lang":"de"}'), ("4", '{"lang":"de"}')]
    english = [("1", '{"lang":"en"}'), ("2", '{"lang":"en"}')]
    assert documents(f"s3://docs/in{options}", tmp_path) == german + english
    assert documents(f"s3://docs/in/*/*.arrow{options}", tmp_path) == german[1:]
    assert documents(f"s3://docs/in/lang=en/a b.parquet{options}", tmp_path) == [("1", "{}"), ("2", "{}")]


def test_the_same_objects_are_the_same_source_and_secrets_stay_out(options, tmp_path):
    first, second = (open_source(f"s3://docs/in{options}", SourceConfig(), tmp_path) for _ in range(2))
    assert first == second
    assert "hunter2" not in repr(first)


def test_what_is_not_there_or_broken(options, tmp_path):
    with pytest.raises(UsageError, match="missing"):
        open_source(f"s3://docs/missing{options}", SourceConfig(), tmp_path)
    with pytest.raises(SourceError, match="broken"):
        open_source(f"s3://docs/broken.parquet{options}", SourceConfig(), tmp_path)
