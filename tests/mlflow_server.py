"""A real MLflow server that tests start, kill and start again, and a proxy that stands before it."""

import http.client
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class MlflowServer:
    """Its runs are in SQLite, its artifacts are served over HTTP; both stay when it is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the server, unless it runs, and waits until it answers."""
        if self.process is not None:
            return
        options = ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--artifacts-destination"]
        options += [str(self.folder / "artifacts"), "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        options += ["--allowed-hosts", "127.0.0.1:*"]
        log = self.folder / "log.txt"
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options],
                cwd=self.folder,
                stdout=output,
                stderr=output,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while not self._is_healthy():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL to the server and its workers."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def rows(self, query: str) -> list[Any]:
        """What a query of the server's own database returns."""
        with closing(sqlite3.connect(f"file:{self.folder}/mlflow.db?mode=ro", uri=True, timeout=20)) as connection:
            return connection.execute(query).fetchall()

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def proxy(
    server: MlflowServer,
    answer_to: Callable[[str, bytes, bytes], bytes | None] = lambda path, body, content: content,
    authorization: str | None = None,
) -> Iterator[str]:
    """The URI of a proxy before the server.

    Args:
        server: what it stands before.
        answer_to: from a request's path, its body and the server's answer to what is answered;
            None closes the connection.
        authorization: the header without which it answers 401.
    """

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _relay(self) -> None:
            body = self._body()
            if authorization is not None and self.headers.get("Authorization") != authorization:
                self._answer(401, "text/plain", b"who are you?")
                return
            upstream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            try:
                headers = {name: value for name, value in self.headers.items() if name != "Transfer-Encoding"}
                upstream.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
                answer = upstream.getresponse()
                content = answer_to(self.path, body, answer.read())
            except OSError:
                content = None
            finally:
                upstream.close()
            if content is None:
                self.close_connection = True
            else:
                self._answer(answer.status, answer.headers["Content-Type"], content)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""  # so an empty file is sent
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _relay

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
