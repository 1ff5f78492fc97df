"""The node's side: what `cmp fleet-node` does with each message that comes over its stdin.

Everything lies in one folder beside the model cache: weights by their hash, and a folder for each job with its runs.
The folder is held while a run is under way, so that two runs at once on one node wait for each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from enginecmp import __version__
from enginecmp.errors import CmpError, FolderHeld, ResultsError
from enginecmp.format.files import MANIFEST
from enginecmp.format.readers import read_manifest
from enginecmp.format.text import plain
from enginecmp.machine.environment import NODE, PRICE
from enginecmp.models.known_files import cache_dir
from enginecmp.placement import messages
from enginecmp.placement.folders import send_folder
from enginecmp.placement.messages import ConnectionLost, Known, Message, Reader, encoded
from enginecmp.placement.node import RUN
from enginecmp.results.writer import ResultsFolder

_LINE_CHARACTERS = 500
_SECONDS_BETWEEN_TRIES = 1.0
_SECONDS_TO_END = 60.0


def home() -> Path:
    """Return the folder of a node."""
    return cache_dir() / "fleet"


class _Exited:
    """The run's process ended."""


Event = Known | _Exited | None
"""What can happen while a run is under way; None is the end of the host's connection."""


def serve(read: Callable[[int], bytes], write: Callable[[bytes], None]) -> None:
    """Answer a host until it lets go.

    Args:
        read: returns up to so many bytes, b"" at the end.
        write: sends all of it.
    """
    _Node(Reader(read), write).serve()


class _Node:
    def __init__(self, reader: Reader, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._events: queue.Queue[Event] = queue.Queue(maxsize=64)
        self._lock = threading.Lock()
        threading.Thread(target=self._read, args=(reader,), daemon=True).start()

    def _read(self, reader: Reader) -> None:
        try:
            while (message := reader.receive()) is not None:
                self._events.put(message)
        except (ConnectionLost, OSError):
            pass
        self._events.put(None)

    def _send(self, message: Message) -> None:
        # A run that ends because nobody listens any more must still end in order.
        with self._lock, contextlib.suppress(OSError):
            self._write(encoded(message))

    def serve(self) -> None:
        self._send(messages.Hello(__version__))
        while (asked := self._events.get()) is not None:
            try:
                self._answer(asked)
            except (CmpError, OSError) as error:
                self._send(messages.Refused(plain(str(error), 1000)))

    def _answer(self, asked: Event) -> None:
        match asked:
            case messages.Put():
                self._put(asked)
            case messages.Run():
                self._run(asked)
            case messages.Fetch():
                folder = _job_folder(asked.job) / _named(asked.run)
                read_manifest(folder)
                send_folder(folder, self._send)
            case messages.Drop():
                shutil.rmtree(_job_folder(asked.job), ignore_errors=True)
                self._send(messages.Done())
            case messages.Stop() | _Exited():
                pass  # came when the run was over already
            case _:
                self._send(messages.Refused(f"expected a question, got {type(asked).__name__}"))

    def _put(self, asked: messages.Put) -> None:
        """Keep a file under its hash; it is there only when it is whole."""
        if len(asked.sha256) != 64 or not set(asked.sha256) <= set("0123456789abcdef"):
            msg = f"expected a SHA-256, got '{plain(asked.sha256, 80)}'"
            raise ResultsError(msg)
        path = home() / "files" / asked.sha256 / _named(asked.name)
        if not (path.is_file() and path.stat().st_size == asked.bytes):
            path.parent.mkdir(parents=True, exist_ok=True)
            room = shutil.disk_usage(path.parent).free
            if room < asked.bytes:
                msg = f"{path}: expected {asked.bytes} bytes of room, got {room}; make room on this node"
                raise ResultsError(msg)
            self._send(messages.Send())
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            try:
                self._write_checked(asked, part)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
        self._send(messages.At(str(path)))

    def _write_checked(self, asked: messages.Put, part: Path) -> None:
        digest, size = hashlib.sha256(), 0
        with open(part, "wb") as file:
            while True:
                message = self._events.get()
                if not isinstance(message, messages.Chunk):
                    msg = f"{asked.name}: the connection ended before the file did"
                    raise ResultsError(msg)
                if not message.data:
                    break
                size += len(message.data)
                if size <= asked.bytes:  # what is too long is read to its end and refused
                    digest.update(message.data)
                    file.write(message.data)
            file.flush()
            os.fsync(file.fileno())
        if size != asked.bytes or digest.hexdigest() != asked.sha256:
            msg = f"{asked.name}: expected SHA-256 {asked.sha256[:12]}…, got {digest.hexdigest()[:12]}… on this node"
            raise ResultsError(msg)

    def _run(self, asked: messages.Run) -> None:
        folder = _job_folder(asked.job)
        held = self._hold()
        if held is None:
            self._send(messages.Ended(-signal.SIGTERM, _runs(folder)))
            return
        with held:
            folder.mkdir(parents=True, exist_ok=True)
            words = _words(asked, folder)
            code = self._watched(words, _variables(asked)) if words else 0
            self._send(messages.Ended(code, _runs(folder)))

    def _hold(self) -> ResultsFolder | None:
        """Hold this node, after whoever holds it now; None when the host has stopped waiting."""
        told = False
        while True:
            try:
                return ResultsFolder(home())
            except FolderHeld as held:
                if not told:
                    self._send(messages.Line(f"waits: {held}"))
                told = True
            with contextlib.suppress(queue.Empty):
                if self._events.get(timeout=_SECONDS_BETWEEN_TRIES) is None:
                    self._events.put(None)  # the end is also that of `serve`
                return None

    def _watched(self, words: list[str], variables: dict[str, str]) -> int:
        """Run a command, pass on its lines, and end it as Ctrl-C would when the host says so or is gone."""
        process = subprocess.Popen(
            [sys.executable, "-m", "enginecmp", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**_environment(), **variables},
            start_new_session=True,
        )
        assert process.stderr is not None
        lines = threading.Thread(target=self._pass_on, args=(process.stderr,), daemon=True)
        lines.start()
        threading.Thread(target=self._wait, args=(process,), daemon=True).start()
        deadline: float | None = None
        gone = False
        while True:
            try:
                event = self._events.get(timeout=deadline)
            except queue.Empty:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                deadline = None
                continue
            if isinstance(event, _Exited):
                break
            if deadline is None:
                process.send_signal(signal.SIGTERM)
                deadline = _SECONDS_TO_END
            gone = gone or event is None
        # The last lines first; a process that the run left behind may hold the pipe.
        lines.join(2.0)
        if not lines.is_alive():
            process.stderr.close()
        if gone:
            self._events.put(None)
        return process.wait()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._events.put(_Exited())

    def _pass_on(self, output: IO[bytes]) -> None:
        while line := output.readline(1 << 16):
            if text := plain(line.decode(errors="replace"), _LINE_CHARACTERS):
                self._send(messages.Line(text))


def _named(name: str) -> str:
    """Return a name that is one part of a path.

    Raises:
        ResultsError: it is something else.
    """
    if not name.isprintable() or "/" in name or name.strip(".") == "" or len(name.encode()) > 200:
        msg = f"expected a name, got '{plain(name, 80)}'"
        raise ResultsError(msg)
    return name


def _job_folder(job: str) -> Path:
    if not RUN.fullmatch(job):
        msg = f"expected a job's name of letters, digits and . _ + -, got '{plain(job, 80)}'"
        raise ResultsError(msg)
    return home() / "jobs" / job


def _runs(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))


def _words(asked: messages.Run, folder: Path) -> list[str]:
    """Return what `cmp` is called with: a new run, or what finishes the one there; nothing where that is whole."""
    # With --json no answer is printed: the host gives one, on all nodes.
    runs = _runs(folder)
    if not runs:
        return ["run", *asked.words, "--out", str(folder), "--json"]
    begun = folder / runs[0]
    return [] if read_manifest(begun).status == "complete" else ["run", "--resume", str(begun), "--json"]


def _environment() -> dict[str, str]:
    """Return this process's variables without those that differ from connection to connection: a gate asks for all."""
    return {key: value for key, value in os.environ.items() if not key.startswith("SSH_")}


def _variables(asked: messages.Run) -> dict[str, str]:
    price = {} if asked.price_per_hour is None else {PRICE: repr(asked.price_per_hour)}
    return {NODE: asked.node, **price}
