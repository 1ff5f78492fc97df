"""What a fleet costs its host: seconds that placing adds to a run, and the memory that a hundred nodes take.

First a real run of a fake engine, on this machine and through a node process of it in turn: what is more is the price
of placing, divided by the run's blocks. Then a hundred simulated nodes, which answer as `cmp fleet-node` does, send
runs of a thousand blocks each to one host at once; their samples are those of the real run, repeated under other
numbers. The host's peak memory is that of a process that does nothing else.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from enginecmp import __version__
from enginecmp.format.files import LAUNCHES, MANIFEST, SAMPLES
from enginecmp.format.readers import read_manifest
from enginecmp.models.store import DEFAULT_MODEL, resolve
from enginecmp.placement import messages
from enginecmp.placement.folders import send_folder
from enginecmp.placement.messages import Message, Reader, encoded
from enginecmp.placement.node import Node
from enginecmp.placement.pipes import CommandChannel
from enginecmp.placement.schedule import Job, Schedule
from enginecmp.placement.visit import Needed

CMP = os.path.join(os.path.dirname(sys.executable), "cmp")
WORDS = ("--engines", "a=fake,b=fake", "--scenario", "decode", "--profile", "quick", "--no-gate", "--no-sensors",
         "--max-extra", "0")  # fmt: skip
NODES = 100
BLOCKS = 1000
ROUNDS = 3
MOST_SECONDS_A_BLOCK = 1.0
MOST_BYTES = 2e9


class _OneNode:
    """A placement on one process of this machine.

    Args:
        cache: its folder for models and jobs.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def nodes(self) -> list[Node]:
        """Return it."""
        return [Node(name="here")]

    def open(self, node: Node) -> CommandChannel:
        """Start it."""
        return CommandChannel(["env", f"ENGINECMP_CACHE={self._cache}", CMP, "fleet-node"])

    def close(self) -> None:
        """Do nothing."""


class _Socket:
    """One end of a connection inside this process."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def write(self, data: bytes) -> None:
        """Send all of it."""
        self._end.sendall(data)

    def read(self, most: int) -> bytes:
        """Return what came, b"" at the end."""
        return self._end.recv(most)

    def close(self) -> None:
        """Let go."""
        self._end.close()

    def why(self) -> str:
        """Return nothing: it does not break."""
        return ""


class _Simulated:
    """A placement on nodes that measured already.

    Args:
        run: folder of a run, which every node says is its own.
    """

    def __init__(self, run: Path) -> None:
        self._run = run

    def nodes(self) -> list[Node]:
        """Return a hundred."""
        return [Node(name=f"node-{number:03}") for number in range(NODES)]

    def open(self, node: Node) -> _Socket:
        """Start a thread that answers."""
        here, there = socket.socketpair()
        threading.Thread(target=self._answer, args=(_Socket(there), node.name), daemon=True).start()
        return _Socket(here)

    def close(self) -> None:
        """Do nothing."""

    def _answer(self, channel: _Socket, name: str) -> None:
        def send(message: Message) -> None:
            channel.write(encoded(message))

        send(messages.Hello(__version__))
        reader = Reader(channel.read)
        while (asked := reader.receive()) is not None:
            if isinstance(asked, messages.Put):
                send(messages.At("there.gguf"))
            elif isinstance(asked, messages.Run):
                for block in range(BLOCKS):
                    send(messages.Line(f"block {block + 1}/{BLOCKS}"))
                send(messages.Ended(0, [name]))
            elif isinstance(asked, messages.Fetch):
                send_folder(self._run, send)
            else:
                send(messages.Done())
        channel.close()


def measure() -> dict[str, Any]:
    """Return the seconds that placing adds to each block, and the peak memory of a host of a hundred nodes."""
    with TemporaryDirectory(prefix="cmp-bench-") as name:
        folder = Path(name)
        added, blocks = _added_seconds(folder)
        a_block = statistics.median(added) / blocks
        told = ", ".join(f"{seconds:+.2f}" for seconds in added)
        print(f"placing: {told} s a run of {blocks} blocks in {len(added)} pairs, {a_block:.3f} s a block")
        large = folder / "large"
        _repeat(next((folder / "placed-0").glob(f"*/{MANIFEST}")).parent, large)
        head = _as_process([sys.executable, "-m", "bench.fleet", str(large), str(folder / "fleet")])
        for run in (folder / "fleet").iterdir():
            manifest = json.loads((run / MANIFEST).read_text())
            (run / MANIFEST).write_text(json.dumps({**manifest, "run_id": run.name}))
        stats = _as_process([CMP, "stats", str(folder / "fleet"), "--json"])
        sent = sum(path.stat().st_size for path in large.iterdir())
    print(f"{NODES} nodes of {BLOCKS} blocks, {sent / 1e6:.0f} MB each:")
    for what, used in {"collecting them": head, "cmp stats over them": stats}.items():
        print(f"  {what}: {used['seconds']:.1f} s, {used['bytes'] / 1e6:.0f} MB at most")
    limits = f"≤ {MOST_SECONDS_A_BLOCK:g} s a block, ≤ {MOST_BYTES / 1e9:g} GB"
    return {
        "target": f"{limits} for {NODES} nodes of {BLOCKS} blocks",
        "met": a_block <= MOST_SECONDS_A_BLOCK and max(head["bytes"], stats["bytes"]) <= MOST_BYTES,
        "added_seconds": added,
        "blocks": blocks,
        "bytes_of_a_run": sent,
        "host": head,
        "stats": stats,
    }


def _added_seconds(folder: Path) -> tuple[list[float], int]:
    """Return how many seconds longer each placed run took than the one on this machine beside it, and its blocks."""
    added = []
    for number in range(ROUNDS):
        start = time.perf_counter()
        command = [CMP, "run", *WORDS, "--out", str(folder / "here")]
        subprocess.run(command, env=_environment(), check=True, capture_output=True)
        here = time.perf_counter() - start
        start = time.perf_counter()
        _place(folder, folder / f"placed-{number}")
        added.append(time.perf_counter() - start - here)
    (manifest,) = list((folder / "placed-0").glob(f"*/{MANIFEST}"))
    return added, int(read_manifest(manifest.parent).scenario["blocks"])


def _place(folder: Path, into: Path) -> None:
    job = _job(into.name, [*WORDS, "--model", "{0}"])
    into.mkdir()
    os.environ |= _environment()
    placement = _OneNode(folder / "cache")
    Schedule(placement, placement.nodes(), [job], into, lambda job: None, lambda job, line: None).run()
    if job.status != "complete":
        raise RuntimeError(job.error)


def _job(name: str, words: list[str]) -> Job:
    model = resolve(DEFAULT_MODEL)
    return Job(name=name, part="decode", words=words, files=[Needed(model.path, model.sha256)], sha256=model.sha256)


def _environment() -> dict[str, str]:
    return {**os.environ, "CMP_PLUGINS": "enginecmp.testing.fake_engine"}


def _repeat(run: Path, into: Path) -> None:
    """Write a run of a thousand blocks: those of a run again and again, at times and under numbers of their own."""
    into.mkdir()
    manifest = json.loads((run / MANIFEST).read_text())
    blocks = manifest["scenario"]["blocks"]
    manifest["scenario"]["blocks"] = BLOCKS
    (into / MANIFEST).write_text(json.dumps(manifest))
    for name in (SAMPLES, LAUNCHES):
        lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
        with open(into / name, "w") as file:
            for again in range(BLOCKS // blocks):
                for line in lines:
                    file.write(json.dumps(_later(line, again, blocks), separators=(",", ":")) + "\n")


def _later(line: dict[str, Any], again: int, blocks: int) -> dict[str, Any]:
    """Return a line of samples or launches as that of a later block, an hour later each time."""
    hours = again * 3600 * 10**9
    later = {name: value + hours for name, value in line.items() if name.endswith("_ns") and name != "token_ns"}
    if "token_ns" in line:
        later["token_ns"] = [stamp + hours for stamp in line["token_ns"]]
    return {**line, **later, "block": line["block"] + again * blocks, "launch": f"{line['launch']}-{again}"}


def _as_process(command: list[str]) -> dict[str, float]:
    """Run a command and return its seconds and its peak resident memory."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {"seconds": time.perf_counter() - start, "bytes": used.ru_maxrss * 1024.0}


def main(run: Path, into: Path) -> None:
    """Collect a run from a hundred simulated nodes; in a process of its own."""
    into.mkdir()
    placement = _Simulated(run)
    jobs = [_job(f"job-{number}", ["{0}"]) for number in range(NODES)]
    Schedule(placement, placement.nodes(), jobs, into, lambda job: None, lambda job, line: None).run()
    if wrong := [job.error for job in jobs if job.status != "complete"]:
        raise RuntimeError(wrong[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
