"""The host's side: one node asked over one channel."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from enginecmp import __version__
from enginecmp.errors import CmpError, ResultsError
from enginecmp.format.readers import read_manifest
from enginecmp.format.text import plain
from enginecmp.placement import messages
from enginecmp.placement.folders import pieces, receive_folder
from enginecmp.placement.messages import ConnectionLost, Known, Message, Reader, encoded
from enginecmp.placement.node import Node
from enginecmp.placement.placement import Channel, Placement

_Answer = TypeVar("_Answer", bound=Message)


class Needed(msgspec.Struct, frozen=True):
    """A file that a job needs on its node; as whole words of its command, "{0}" and "{1}" stand for paths there.

    Attributes:
        path: of the file on the host.
        sha256: of its content.
    """

    path: str
    sha256: str


class Visit:
    """A node that answers.

    Args:
        node: which.
        channel: to its `cmp fleet-node`.

    Raises:
        ConnectionLost: nothing answers there, or another version of enginecmp does.
    """

    def __init__(self, node: Node, channel: Channel) -> None:
        self.node = node
        self._channel = channel
        self._reader = Reader(channel.read)
        self._writing = threading.Lock()
        self._running = False
        hello = self._require(messages.Hello, self._receive(), "a greeting")
        if hello.version != __version__:
            msg = (
                f"{node.name}: expected enginecmp {__version__}, got {plain(hello.version, 40)}; install that one there"
            )
            raise ConnectionLost(msg)

    def put(self, file: Needed) -> str:
        """Bring a file to the node, where it is not there yet, and return its path there."""
        path = Path(file.path)
        try:
            self._send(messages.Put(file.sha256, path.name, path.stat().st_size))
            answer = self._receive()
            if isinstance(answer, messages.Send):
                for piece in pieces(path):
                    self._send(piece)
                answer = self._receive()
        except OSError as error:
            msg = f"{path}: cannot be read ({error.strerror or error})"
            raise ResultsError(msg) from error
        return self._require(messages.At, answer, f"the path of {path.name}").path

    def run(
        self, job: str, words: Sequence[str], files: Sequence[Needed], said: Callable[[str], None]
    ) -> messages.Ended:
        """Run `cmp run` for a job, or go on with it, until it ends.

        Args:
            job: name of its folder there.
            words: options of `cmp run`; a word "{0}" stands for the path of the first of `files` on the node.
            files: that it needs.
            said: told each line that it prints.
        """
        paths = {f"{{{number}}}": self.put(file) for number, file in enumerate(files)}
        whole = [paths.get(word, word) for word in words]
        self._send(messages.Run(job, self.node.name, whole, self.node.price_per_hour))
        self._running = True
        try:
            while isinstance(answer := self._receive(), messages.Line):
                said(plain(answer.text, 500))
        finally:
            self._running = False
        return self._require(messages.Ended, answer, "the end of a run")

    def collect(self, job: str, run: str, into: Path, sha256: str) -> None:
        """Bring a run of a job; what is of that name already is replaced.

        Args:
            job: of which it is.
            run: its name, as the node says.
            into: folder of runs.
            sha256: of the model that it must have timed.

        Raises:
            ResultsError: it is not what was asked for; it is not kept.
        """
        self._send(messages.Fetch(job, run))
        try:
            receive_folder(self._receive, into / run)
            got = read_manifest(into / run).model.sha256
        except ResultsError as error:
            shutil.rmtree(into / run, ignore_errors=True)
            msg = f"{self.node.name}: {error}"
            raise ResultsError(msg) from error
        if got != sha256:
            shutil.rmtree(into / run, ignore_errors=True)
            msg = f"{self.node.name}: run {run}: expected a model of SHA-256 {sha256[:12]}…, got {plain(got, 12)}"
            raise ResultsError(msg)

    def drop(self, job: str) -> None:
        """Let the node forget a job, whose runs are here now."""
        self._send(messages.Drop(job))
        self._require(messages.Done, self._receive(), "that a job is dropped")

    def stop(self) -> None:
        """End the run that is under way as Ctrl-C would, and let go where none is; any thread may call it."""
        if not self._running:
            self.close()
            return
        with contextlib.suppress(ConnectionLost):
            self._send(messages.Stop())

    def close(self) -> None:
        """Let go; a run under way is ended."""
        self._channel.close()

    def _send(self, message: Message) -> None:
        try:
            with self._writing:
                self._channel.write(encoded(message))
        except (OSError, ValueError) as error:
            raise self._lost(str(error)) from error

    def _receive(self) -> Known:
        try:
            message = self._reader.receive()
        except (OSError, ValueError, ConnectionLost) as error:
            raise self._lost(str(error)) from error
        if message is None:
            raise self._lost(what="the connection ended")
        if isinstance(message, messages.Refused):
            msg = f"{self.node.name}: {plain(message.error, 1000)}"
            raise CmpError(msg)
        return message

    def _require(self, kind: type[_Answer], answer: Known, what: str) -> _Answer:
        if not isinstance(answer, kind):
            raise self._lost(what=f"expected {what}, got {type(answer).__name__}")
        return answer

    def _lost(self, what: str) -> ConnectionLost:
        why = plain(self._channel.why(), 500)
        return ConnectionLost(f"{self.node.name}: {plain(what, 200)}{f' ({why})' if why else ''}")


@contextlib.contextmanager
def visiting(placement: Placement, node: Node) -> Iterator[Visit]:
    """Open a node, and let go of it afterwards.

    Raises:
        ConnectionLost: it cannot be reached.
    """
    try:
        channel = placement.open(node)
    except OSError as error:
        msg = f"{node.name}: cannot be reached: {plain(str(error), 300)}"
        raise ConnectionLost(msg) from error
    try:
        yield Visit(node, channel)
    finally:
        channel.close()
