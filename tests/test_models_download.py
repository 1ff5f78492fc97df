"""Downloads from a real HTTP server that breaks off, knows no ranges, or sends the wrong file."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from enginecmp.errors import ModelError
from enginecmp.models import download as download_module
from enginecmp.models.store import cached, pull, resolve
from enginecmp.models.synth import write_synth

download = partial(download_module.download, pause_seconds=0.0)


class Script:
    """What the server does, and what it was asked.

    Attributes:
        content: the file.
        ranges: answer Range requests.
        drop_after: bytes of each answer's body after which the connection breaks, one entry a request.
        status: answer with this status instead.
        etag: entity tag of the file.
        hold: wait for this before the body is sent.
        reached: set when a request has come.
        asked: the Range header of every request.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.ranges = True
        self.drop_after: list[int] = []
        self.status = 200
        self.etag = '"one"'
        self.hold: threading.Event | None = None
        self.reached = threading.Event()
        self.asked: list[str | None] = []


class Server(ThreadingHTTPServer):
    daemon_threads = True
    script: Script


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        script = self.server.script
        script.asked.append(self.headers["Range"])
        script.reached.set()
        if script.hold is not None:
            script.hold.wait(60)
        if script.status != 200:
            self.send_error(script.status)
            return
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        current = self.headers["If-Range"] in (None, script.etag)
        if script.ranges and asked and current:
            start = int(asked[1])
        if start >= len(script.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(script.content)}")
            self.end_headers()
            return
        body = script.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(script.content) - 1}/{len(script.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", script.etag)
        self.end_headers()
        if script.drop_after:
            body = body[: script.drop_after.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def script(tmp_path: Path) -> Script:
    write_synth(tmp_path / "served.gguf", "tiny-llama", seed=9)
    return Script((tmp_path / "served.gguf").read_bytes())


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.script = script
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/models/served.gguf"
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ENGINECMP_CACHE", str(folder))
    return folder


def hash_of(script: Script) -> str:
    return hashlib.sha256(script.content).hexdigest()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_file_arrives_whole_and_the_part_is_gone(url: str, script: Script, tmp_path: Path) -> None:
    target = tmp_path / "new" / "x.gguf"
    download(url, target, hash_of(script))
    assert target.read_bytes() == script.content
    assert names(target.parent) == ["x.gguf"]


def test_broken_connection_is_resumed_where_it_stopped(url: str, script: Script, tmp_path: Path) -> None:
    script.drop_after = [100_000, 50_000]
    seen: list[tuple[int, int | None]] = []
    download(url, tmp_path / "x.gguf", hash_of(script), lambda done, total: seen.append((done, total)))
    assert (tmp_path / "x.gguf").read_bytes() == script.content
    assert script.asked == [None, "bytes=100000-", "bytes=150000-"]
    assert seen[-1] == (len(script.content), len(script.content))


def test_server_without_ranges_starts_over(url: str, script: Script, tmp_path: Path) -> None:
    script.ranges = False
    script.drop_after = [100_000]
    download(url, tmp_path / "x.gguf", hash_of(script))
    assert (tmp_path / "x.gguf").read_bytes() == script.content
    assert script.asked == [None, "bytes=100000-"]


def test_file_that_changed_on_the_server_is_not_glued_together(url: str, script: Script, tmp_path: Path) -> None:
    (tmp_path / "x.gguf.part").write_bytes(b"the first bytes of an older file")
    (tmp_path / "x.gguf.part.etag").write_text('"older"')
    download(url, tmp_path / "x.gguf", None)
    assert (tmp_path / "x.gguf").read_bytes() == script.content


def test_whole_part_is_not_fetched_again(url: str, script: Script, tmp_path: Path) -> None:
    (tmp_path / "x.gguf.part").write_bytes(script.content)
    download(url, tmp_path / "x.gguf", hash_of(script))
    assert script.asked == [f"bytes={len(script.content)}-"]
    assert names(tmp_path) == ["served.gguf", "x.gguf"]


def test_server_that_always_breaks_off_is_one_line_and_the_part_stays(url: str, script: Script, tmp_path: Path) -> None:
    script.drop_after = [1000] + [0] * 20
    with pytest.raises(ModelError, match=r"ended early \(5 times\); the same command resumes it"):
        download(url, tmp_path / "x.gguf", hash_of(script))
    assert (tmp_path / "x.gguf.part").read_bytes() == script.content[:1000]
    script.drop_after = []
    download(url, tmp_path / "x.gguf", hash_of(script))
    assert (tmp_path / "x.gguf").read_bytes() == script.content


def test_missing_file_is_told_at_once(url: str, script: Script, tmp_path: Path) -> None:
    script.status = 404
    with pytest.raises(ModelError, match="HTTP 404"):
        download(url, tmp_path / "x.gguf", None)
    assert len(script.asked) == 1


def test_wrong_hash_is_refused_and_the_file_removed(url: str, cache: Path) -> None:
    with pytest.raises(ModelError, match=f"expected SHA-256 {'0' * 64}, came"):
        pull(url, sha256="0" * 64)
    assert names(cache) == []


def test_file_that_is_no_gguf_is_refused_and_removed(url: str, script: Script, cache: Path) -> None:
    script.content = b"<html>please log in</html>"
    with pytest.raises(ModelError, match="magic bytes"):
        pull(url)
    assert names(cache) == []


def test_pulled_file_needs_no_network_afterwards(url: str, script: Script, cache: Path) -> None:
    pulled = pull(url, sha256=hash_of(script).upper())
    script.status = 503
    assert pull(url) == resolve(url) == resolve("served") == pulled
    assert [sidecar.info.name for sidecar in cached()] == ["served"]
    assert len(script.asked) == 1


def test_other_file_of_the_same_name_is_not_overwritten(url: str, cache: Path) -> None:
    pulled = pull(url)
    with pytest.raises(ModelError, match="expected no other file of that name"):
        pull(url.replace("/models/", "/others/"))
    assert Path(pulled.path).exists()


def test_disk_that_fills_up_is_one_line_and_leaves_nothing(url: str, tmp_path: Path) -> None:
    """A file size limit makes the kernel refuse a write in the middle, as a full disk does."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from pathlib import Path; from enginecmp.models.download import download;"
        "from enginecmp.errors import ModelError\n"
        "try: download(sys.argv[1], Path(sys.argv[2]), None)\n"
        "except ModelError as error: print(error)"
    )
    target = tmp_path / "full" / "x.gguf"
    done = subprocess.run([sys.executable, "-B", "-c", code, url, target], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert "File too large" in done.stdout
    assert names(target.parent) == []


def test_cache_that_cannot_be_written_is_one_line(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")  # permissions would not stop root
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"expected a writable model cache.*set ENGINECMP_CACHE"):
        pull(url)


def test_two_processes_pulling_at_once_fetch_once(url: str, script: Script, cache: Path) -> None:
    """The second one finds the file locked, says so, waits, and then takes what the first one fetched."""
    script.hold = threading.Event()
    code = (
        "import sys; from enginecmp.models.store import pull;"
        "print(pull(sys.argv[1], say=lambda line: print(line, file=sys.stderr, flush=True)).sha256)"
    )
    command = [sys.executable, "-c", code, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert script.reached.wait(60)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as second:
            assert second.stderr is not None
            assert second.stderr.readline() == "served.gguf: another cmp is making it, waiting\n"
            script.hold.set()
            answers = [first.communicate()[0], second.communicate()[0]]
    assert answers == [f"{hash_of(script)}\n"] * 2
    assert len(script.asked) == 1


def test_interrupt_leaves_a_part_that_the_next_pull_resumes(url: str, script: Script, cache: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(url, on_bytes=interrupt)
    (part,) = names(cache)[:1]
    assert part == "served.gguf.part"
    size = (cache / part).stat().st_size
    assert 0 < size < len(script.content)
    pull(url, sha256=hash_of(script))
    assert script.asked == [None, f"bytes={size}-"]
