"""A server that speaks Qdrant's protocol, gRPC and REST, over the edge store, with planted faults.

    python tests/qdrant_server.py --dir DIR [--api-key KEY] [--rest-port 0] [--grpc-port 0]

listens on loopback and prints its ports in JSON. It knows what `pipeline.stores.server` asks, and what the RAG
clients ask to read. `POST /faults` plants one:
`{"kind": "status", "status": 429, "retry_after": "0.1", "on": "upsert"}`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import grpc
from qdrant_client.grpc.collections_service_pb2_grpc import add_CollectionsServicer_to_server
from qdrant_client.grpc.points_service_pb2_grpc import add_PointsServicer_to_server
from qdrant_faults import Qdrant
from qdrant_grpc import Collections, Points_
from qdrant_rest import Rest

from pipeline.stores.edge import EdgeStore


def serve(folder: Path, api_key: str, rest_port: int, grpc_port: int) -> None:
    """Listen until SIGTERM."""
    qdrant = Qdrant(EdgeStore.open(folder), api_key)
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 64 << 20)])
    add_PointsServicer_to_server(Points_(qdrant), server)
    add_CollectionsServicer_to_server(Collections(qdrant), server)
    grpc_port = server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    server.start()
    rest = ThreadingHTTPServer(("127.0.0.1", rest_port), type("Handler", (Rest,), {"qdrant": qdrant}))
    rest.daemon_threads = True
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    sys.stdout.write(json.dumps({"rest": rest.server_port, "grpc": grpc_port}) + "\n")
    sys.stdout.flush()
    stopped.wait()
    rest.shutdown()
    server.stop(0.2).wait()
    qdrant.store.close()


class Server:
    """A running server process."""

    def __init__(self, folder: Path, api_key: str = "", rest_port: int = 0, grpc_port: int = 0) -> None:
        self.folder, self.api_key = folder, api_key
        command = [sys.executable, __file__, "--dir", str(folder), "--rest-port", str(rest_port)]
        self.process = subprocess.Popen(
            [*command, "--grpc-port", str(grpc_port)],
            stdout=subprocess.PIPE,
            env={**os.environ, "HEADWATER_TEST_API_KEY": api_key},
        )
        ports = json.loads(self.process.stdout.readline())
        self.rest_port, self.grpc_port = ports["rest"], ports["grpc"]

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self.rest_port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}"

    def plant(self, kind: str = "", **fault) -> None:
        """Replace the planted fault; none for no kind."""
        self._control(json.dumps({"kind": kind, **fault} if kind else {}).encode())

    def calls(self) -> list[str]:
        """The calls so far, with the number of points of each upsert."""
        return self._control(None)["calls"]

    def kill(self) -> None:
        """End it at once, as a power cut would end a machine."""
        self.process.kill()
        self.process.wait()

    def again(self) -> Server:
        """A new server over the same folder on the same ports."""
        return Server(self.folder, self.api_key, self.rest_port, self.grpc_port)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process.stdout.close()

    def _control(self, fault: bytes | None) -> dict:
        with urllib.request.urlopen(f"{self.rest_url}/faults", fault, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def running(folder: Path, api_key: str = ""):
    """A server for the length of a `with` block."""
    server = Server(folder, api_key)
    try:
        yield server
    finally:
        server.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--api-key", default=os.environ.get("HEADWATER_TEST_API_KEY", ""))
    parser.add_argument("--rest-port", type=int, default=0)
    parser.add_argument("--grpc-port", type=int, default=0)
    options = parser.parse_args()
    serve(options.dir, options.api_key, options.rest_port, options.grpc_port)
