"""A server that speaks just enough HTTP, and misbehaves on request: standard library only, one thread a connection.

Run as `python openai_stub.py PORT` it behaves, and starts a child that must not outlive it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

Behaviour = Callable[["Talk", dict[str, Any]], None]


class Talk:
    """One request, and the means to answer it well or badly."""

    def __init__(self, stub: Stub, connection: socket.socket, path: str, headers: dict[str, str]) -> None:
        self.stub = stub
        self.connection = connection
        self.path = path
        self.headers = headers
        self.hang_up = False

    def raw(self, content: bytes) -> None:
        self.connection.sendall(content)

    def reply(self, status: int, content: Any, *headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        lines = [f"HTTP/1.1 {status} Word", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
        self.raw("\r\n".join([*lines, "", ""]).encode() + body)

    def begin(self, kind: str = "text/event-stream") -> None:
        self.raw(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())

    def chunk(self, content: bytes) -> None:
        self.raw(b"%x\r\n%s\r\n" % (len(content), content))

    def event(self, content: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
        self.chunk(b"data: " + data + b"\n\n")

    def token(self, text: str) -> None:
        self.event({"choices": [{"index": 0, "text": text, "finish_reason": None}]})

    def usage(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.event({"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}})

    def finish(self, reason: str = "length") -> None:
        self.event({"choices": [{"index": 0, "text": "", "finish_reason": reason}]})

    def done(self) -> None:
        self.event(b"[DONE]")

    def end(self) -> None:
        self.raw(b"0\r\n\r\n")

    def close(self) -> None:
        """Hang up in the middle of whatever was said."""
        self.hang_up = True

    def reset(self) -> None:
        """Hang up so that the other end gets a reset."""
        time.sleep(0.05)  # a reset that overtakes what was said would be another misbehaviour
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
        self.hang_up = True


def behave(talk: Talk, body: dict[str, Any]) -> None:
    """What a good server does: one token a chunk, the count, the end."""
    wanted = body["max_tokens"]
    talk.begin()
    for number in range(wanted):
        talk.token(f" w{number}")
    talk.finish()
    talk.usage(talk.stub.prompt_tokens(body), wanted)
    talk.done()
    talk.end()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128  # with the 5 of the library, a connection in a burst waits a second for its second SYN


class Stub:
    """The server; `behaviours` are used up by streamed requests, one each, then it behaves.

    Attributes:
        behaviours: what to do next.
        always: what to do after that.
        requests: bodies of the streamed requests so far.
        plain: bodies of the others.
        heads: headers of all requests.
        routes: path → answer, for everything else.
        models: entries of /v1/models.
        refuse_ids: status for prompts of ids; 0 takes them.
        connections: opened so far.
        count: tokens of a text.
    """

    def __init__(self, port: int = 0) -> None:
        self.behaviours: list[Behaviour] = []
        self.always: Behaviour = behave
        self.requests: list[dict[str, Any]] = []
        self.plain: list[dict[str, Any]] = []
        self.heads: list[dict[str, str]] = []
        self.routes: dict[str, Any] = {}
        self.models: list[dict[str, Any]] = [{"id": "stub", "owned_by": "me"}]
        self.refuse_ids = 0
        self.connections = 0
        self.count: Callable[[str], int] = lambda text: len(text.split())
        stub = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                stub.connections += 1
                with contextlib.suppress(OSError):
                    while stub.serve(self.connection, self.rfile):
                        pass

        self._server = _Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def prompt_tokens(self, body: dict[str, Any]) -> int:
        prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        return len(prompt) if isinstance(prompt, list) else self.count(prompt)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self, connection: socket.socket, file: Any) -> bool:
        """Answer one request; False ends the connection."""
        line = file.readline()
        if not line:
            return False
        path = line.split()[1].decode()
        headers: dict[str, str] = {}
        while (field := file.readline().strip()) != b"":
            name, _, value = field.decode().partition(":")
            headers[name.lower()] = value.strip()
        self.heads.append(headers)
        content = file.read(int(headers.get("content-length", 0)))
        body: dict[str, Any] = json.loads(content) if content else {}
        talk = Talk(self, connection, path, headers)
        if path in self.routes:
            answer = self.routes[path]
            if callable(answer):
                answer(talk, body)
            else:
                talk.reply(200, answer)
        elif path == "/v1/models":
            talk.reply(200, {"object": "list", "data": self.models})
        elif path not in ("/v1/completions", "/v1/chat/completions"):
            talk.reply(404, {"error": "no such path"})
        elif body.get("stream"):
            self.requests.append(body)
            (self.behaviours.pop(0) if self.behaviours else self.always)(talk, body)
        elif isinstance(body.get("prompt"), list) and self.refuse_ids:
            talk.reply(self.refuse_ids, {"error": {"message": "prompt should be a string"}})
        else:
            self.plain.append(body)
            usage = {"prompt_tokens": self.prompt_tokens(body), "completion_tokens": body["max_tokens"]}
            talk.reply(200, {"choices": [{"index": 0, "text": " w0", "finish_reason": "length"}], "usage": usage})
        return not talk.hang_up


@contextlib.contextmanager
def running() -> Iterator[Stub]:
    """A server for as long as the block lasts."""
    stub = Stub()
    try:
        yield stub
    finally:
        stub.close()


if __name__ == "__main__":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(f"child {child.pid}", flush=True)
    Stub(int(sys.argv[1]))
    time.sleep(600)
