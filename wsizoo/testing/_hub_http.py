"""Framing of the Hub double: requests, replies, planned faults, and the two loopback servers."""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs

from wsizoo.errors import DataError

ServerName = Literal["hub", "cdn"]


@dataclass
class Request:
    """One request as it arrived: raw (still quoted) path, lower-case header names."""

    server: ServerName
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = field(repr=False)
    target: str
    status: int = 0  # of the answer; 0 until there is one

    @property
    def token(self) -> str | None:
        """The bearer token that came along."""
        value = self.headers.get("authorization", "")
        return value.removeprefix("Bearer ") if value.startswith("Bearer ") else None

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass
class Reply:
    """What goes back; `cut_at` closes the connection after that many bytes of the body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_at: int | None = None

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Mapping[str, str] = {}) -> "Reply":
        """A JSON answer."""
        body = json.dumps(value).encode()
        return cls(status, {"Content-Type": "application/json", **headers}, body)


class RefusedError(Exception):
    """Raised inside a route to answer with an error the client understands."""

    def __init__(
        self,
        status: int,
        code: str | None = None,
        message: str = "",
        headers: Mapping[str, str] = {},
    ) -> None:
        super().__init__(message)
        named = {"X-Error-Code": code or "", "X-Error-Message": message}
        shown = {key: value for key, value in named.items() if value}
        self.reply = Reply.json({"error": message}, status, {**shown, **headers})


@dataclass
class Fault:
    """One planned misbehaviour; see `HubDouble.fault` for the fields."""

    method: str | None
    pattern: re.Pattern[str]
    left: int | None
    server: ServerName | None
    status: int | None
    cut_at: int | None
    short: int | None
    mutate: Callable[[bytes], bytes] | None
    delay: float
    headers: Mapping[str, str | None]

    def __post_init__(self) -> None:
        changes = (self.status, self.cut_at, self.short, self.mutate)
        if all(c is None for c in changes) and not self.delay and not self.headers:
            raise DataError(
                f"The fault for '{self.pattern.pattern}' changes nothing: give status, cut_at, "
                "short, mutate, delay or headers."
            )

    def meets(self, request: Request) -> bool:
        """Whether this request is one to spoil."""
        return (
            self.left != 0
            and self.method in (None, request.method)
            and self.server in (None, request.server)
            and self.pattern.search(request.target) is not None
        )

    def spoil(self, reply: Reply) -> Reply:
        """The reply as the fault wants it."""
        body = self.mutate(reply.body) if self.mutate else reply.body
        body = body if self.short is None else body[: self.short]
        patched = {**reply.headers, **self.headers}
        headers = {key: value for key, value in patched.items() if value is not None}
        return Reply(reply.status, headers, body, self.cut_at)


class LoopbackServer(ThreadingHTTPServer):
    """A server on 127.0.0.1 and a free port whose threads never outlive `stop`."""

    daemon_threads = True

    def __init__(self, name: ServerName, answer: Callable[[Request], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name: ServerName = name
        self.answer = answer
        self.open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def start(self) -> int:
        """Serve in a thread; returns the port."""
        self._thread.start()
        return int(self.server_address[1])

    def stop(self) -> None:
        """Stop listening and close connections that clients keep alive."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 with keep-alive; every answer states its Content-Length."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LoopbackServer

    def setup(self) -> None:
        """Remember the connection, so that `stop` can close it."""
        super().setup()
        self.server.open.add(self.connection)

    def handle(self) -> None:
        """Serve until the client goes away, which is no error here."""
        with contextlib.suppress(OSError):
            super().handle()

    def finish(self) -> None:
        """Forget the connection."""
        self.server.open.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the double keeps its own log."""

    def _serve(self) -> None:
        # The body is read before anything is answered, or keep-alive would break on an error.
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, _, query = self.path.partition("?")
        headers = {key.lower(): value for key, value in self.headers.items()}
        parsed = parse_qs(query, keep_blank_values=True)
        request = Request(self.server.name, self.command, path, parsed, headers, body, self.path)
        self._send(self.server.answer(request))

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for key, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: reply.cut_at])
        if reply.cut_at is not None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _serve  # noqa: N815


def ranged(request: Request, data: bytes, headers: Mapping[str, str], honour: bool) -> Reply:
    """`data`, or the part of it that a `Range` header asks for (206, or 416 beyond the end)."""
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    base = {"Content-Type": "application/octet-stream", **headers}
    if not honour or not wanted or wanted.groups() == ("", ""):
        return Reply(200, {"Accept-Ranges": "bytes", **base}, data)
    first, last = wanted.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    stop = min(int(last), len(data) - 1) + 1 if first and last else len(data)
    if start >= stop:
        return Reply(416, {**base, "Content-Range": f"bytes */{len(data)}"})
    span = f"bytes {start}-{stop - 1}/{len(data)}"
    return Reply(206, {**base, "Content-Range": span}, data[start:stop])
