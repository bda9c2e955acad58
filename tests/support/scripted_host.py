"""A host that speaks NDIF's protocol and sends whatever a test tells it to; it records what it was sent."""

from __future__ import annotations

import base64
import hashlib
import json
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

TEXT, BINARY = 1, 2
Answer = Callable[[Any], None]  # writes to the connection


def http(content: bytes, status: str = "200 OK", *headers: str) -> Answer:
    """An HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Connection: close", *headers, "", ""]
    return lambda out: out.write("\r\n".join(lines).encode() + content)


def endless(line: bytes = b"x" * 65536) -> Answer:
    """An HTTP answer that never ends."""

    def write(out: Any) -> None:
        out.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            out.write(line)

    return write


def redirect(address: str) -> Answer:
    """An HTTP redirect."""
    return http(b"", "302 Found", f"Location: {address}")


def frame(content: bytes, kind: int = TEXT, *, length: int | None = None) -> bytes:
    """A whole websocket message, or one that claims another length."""
    size = len(content) if length is None else length
    head = struct.pack("!BB", 0x80 | kind, size) if size < 126 else struct.pack("!BBQ", 0x80 | kind, 127, size)
    return head + content


def status(state: str, data: Any = None, description: str = "") -> bytes:
    """A status update as a frame."""
    update = {"id": "job", "status": state, "description": description, "data": data}
    return frame(json.dumps(update).encode())


class Host:
    """Answers by path: `answers["/status"]`; `frames` follow the session's id on `/subscribe`."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []  # (path, headers in lower case)
        self.frames: list[bytes] = []
        self.opening = frame(b'{"session_id": "s"}')
        self.answers: dict[str, Answer] = {"/request": http(b'{"id": "job", "status": "RECEIVED"}')}
        self.address = ""

    @contextmanager
    def running(self) -> Iterator[Host]:
        host = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):  # the client hung up
                    host.converse(self.rfile, self.wfile)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True

        with Server(("127.0.0.1", 0), Handler) as server:
            self.address = f"http://127.0.0.1:{server.server_address[1]}"
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield self
            server.shutdown()

    def converse(self, read: Any, write: Any) -> None:
        """One request and its answer."""
        path = read.readline().split()[1].decode()
        lines = iter(lambda: read.readline().decode().strip(), "")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.seen.append((path, headers))
        read.read(int(headers.get("content-length", 0)))
        if path in self.answers:
            self.answers[path](write)
        elif path == "/subscribe":
            accept = hashlib.sha1(f"{headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode())
            shaken = base64.b64encode(accept.digest()).decode()
            write.write(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Accept: {shaken}\r\n\r\n".encode()
            )
            write.write(self.opening)
            for part in self.frames:
                write.write(part)
            read.read(1)  # until the client hangs up
        else:
            http(b"", "404 Not Found")(write)
