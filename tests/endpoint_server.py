"""A chat-completions server on this machine for tests: every reply, good or broken, is what the test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What the server does with one request. promised: the Content-Length it writes, None: the body's own.

    dies: the server is killed by it; neither this request nor any that comes later is answered.
    """

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drip_s: float = 0.0  # between the body's bytes
    promised: int | None = None
    hang_up: bool = False  # close without a word
    dies: bool = False


def answer(text: str, **changes: Any) -> Reply:
    """A whole answer as OpenAI writes one."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | changes
    return Reply(body=json.dumps({"id": "1", "model": "served", "choices": [choice]}))


@dataclass
class Server:
    """url: to give to Endpoint. asked: the requests in order, each (seconds, JSON, headers)."""

    url: str
    asked: list[tuple[float, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None

    @property
    def texts(self) -> list[str]:
        return [content["messages"][-1]["content"] for _, content, _ in self.asked]


@contextmanager
def serving(reply: Callable[[int, dict[str, Any]], Reply]) -> Iterator[Server]:
    """A server that answers request number n (from 0) with JSON c by reply(n, c), until the block ends."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                if stopped.is_set():
                    return
                number = len(server.asked)
                server.asked.append((time.monotonic(), content | {"path": self.path}, dict(self.headers)))
            made = reply(number, content)
            if made.dies:
                stop()  # before its client can ask again
            stopped.wait(made.delay_s)
            if made.hang_up or made.dies:
                return
            body = made.body.encode()
            try:
                self.send_response(made.status)
                for name, value in made.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body) if made.promised is None else made.promised))
                self.end_headers()
                step = 1 if made.drip_s else max(1, len(body))
                for start in range(0, len(body), step):
                    self.wfile.write(body[start : start + step])
                    self.wfile.flush()
                    time.sleep(made.drip_s)
            except OSError:
                pass  # the client left first: that is what some tests are about

        def log_message(self, *_: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    server = Server(f"http://127.0.0.1:{httpd.server_address[1]}/v1")
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    stopped = threading.Event()

    def stop() -> None:
        """Kills the server: whoever asks from now on finds nobody there."""
        if not stopped.is_set():
            stopped.set()
            httpd.shutdown()
            httpd.server_close()

    server.stop = stop
    thread.start()
    try:
        yield server
    finally:
        stop()
