"""Runs on other machines: what a node does, what a host believes of it, and who gets which job."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import SCENARIO
from nodes import WORDS, LocalNodes

from enginecmp import __version__
from enginecmp.errors import CmpError, ResultsError, UsageError
from enginecmp.format.readers import read_manifest
from enginecmp.placement.folders import receive_folder, send_folder
from enginecmp.placement.messages import (
    MOST_MESSAGE_BYTES,
    At,
    Chunk,
    ConnectionLost,
    Done,
    Ended,
    File,
    Hello,
    Known,
    Line,
    Message,
    Put,
    Reader,
    Run,
    Send,
    encoded,
)
from enginecmp.placement.node import Node, check_nodes, lacking, read_require
from enginecmp.placement.placement import find_placement
from enginecmp.placement.schedule import Job, Schedule
from enginecmp.placement.visit import Needed, Visit, visiting
from enginecmp.types import ModelInfo

NODE = Node(name="a")


class Said:
    """A channel whose other end says what is given, whatever it is asked."""

    def __init__(self, *messages: Message | bytes) -> None:
        self._data = b"".join(m if isinstance(m, bytes) else encoded(m) for m in messages)
        self.heard = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.heard += data

    def read(self, most: int) -> bytes:
        taken, self._data = self._data[: min(most, 1000)], self._data[min(most, 1000) :]
        return taken

    def close(self) -> None:
        self.closed = True

    def why(self) -> str:
        return "it \x1b[31mburnt"


def messages(*given: Message) -> Callable[[], Known]:
    reader = Reader(Said(*given).read)

    def receive() -> Known:
        message = reader.receive()
        assert message is not None
        return message

    return receive


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_labels_that_are_numbers_are_amounts_and_others_are_names() -> None:
    node = Node(name="x", labels={"gpu": "H200", "cpus": 16})
    assert lacking(node, read_require("gpu=h200, cpus=16")) == ""
    assert lacking(node, read_require("cpus=17")) == "expected cpus 17 or more, got 16"
    assert lacking(node, read_require("gpu=A100")) == "expected gpu A100, got H200"
    assert lacking(node, read_require("disk=1")) == "expected disk 1 or more, got no such label"
    assert lacking(node, read_require("gpu=1")) == "expected gpu 1 or more, got H200"


@pytest.mark.parametrize("text", ["gpu", "=3", "gpu=", "cpus=2,x"])
def test_a_requirement_is_key_and_value(text: str) -> None:
    with pytest.raises(UsageError, match="expected KEY=VALUE like gpu=H200,cpus=16, got"):
        read_require(text)


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([], "at least one node"),
        ([Node(name="../x")], "letters, digits"),
        ([Node(name="a"), Node(name="a")], "two nodes are called 'a'"),
        ([Node(name="a", price_per_hour=float("nan"))], "expected a price of 0 or more"),
    ],
)
def test_nodes_that_cannot_be_used_are_refused(nodes: list[Node], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        check_nodes(nodes, "--on x")


def test_an_unknown_placement_names_what_there_is() -> None:
    with pytest.raises(UsageError, match="--on shh: no placement of that name is installed; did you mean 'ssh'"):
        find_placement("shh:x")


def test_what_is_no_message_loses_the_connection() -> None:
    for data in (
        b"\xff\xff\xff\xff",
        encoded(Done())[:-1],
        b"\x01\x00\x00\x00\xc1",
        b"\x02\x00\x00\x00\x90\x90",
        b"\x01",
    ):
        with pytest.raises(ConnectionLost):
            Reader(Said(data).read).receive()
    assert Reader(Said().read).receive() is None
    assert len(encoded(Chunk(bytes(1 << 18)))) < MOST_MESSAGE_BYTES


def test_a_folder_arrives_as_it_was_without_its_links(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "logs").mkdir(parents=True)
    (folder / "manifest.json").write_bytes(b"{}")
    (folder / "logs" / "big").write_bytes(bytes(range(256)) * 3000)
    (folder / "empty").touch()
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "n\n").touch()
    sent: list[Message] = []
    send_folder(folder, sent.append)
    (tmp_path / "here" / "run").mkdir(parents=True)
    (tmp_path / "here" / "run" / "older").touch()
    receive_folder(messages(*sent), tmp_path / "here" / "run")
    found = {p.relative_to(tmp_path / "here").as_posix() for p in (tmp_path / "here").rglob("*") if p.is_file()}
    assert found == {"run/manifest.json", "run/logs/big", "run/empty"}
    assert (tmp_path / "here/run/logs/big").read_bytes() == (folder / "logs/big").read_bytes()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a//b", "a/./b", "a/../../b", "", "a\nb", "a\x1b[0m", "\u202e", "a\\b", "x" * 300]
)
def test_a_node_cannot_name_a_file_outside_its_run(name: str, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ResultsError):
        receive_folder(messages(File(name), Chunk(b"x"), Chunk(b""), Done()), into / "run")
    assert list(tmp_path.rglob("*")) == [into]


def test_a_node_cannot_send_more_than_a_run_holds(tmp_path: Path) -> None:
    endless = [File("x"), *[Chunk(bytes(600))] * 3, Chunk(b""), Done()]
    with pytest.raises(ResultsError, match="got more bytes"):
        receive_folder(messages(*endless), tmp_path / "run", most_bytes=1000)
    with pytest.raises(ResultsError):  # the same file twice
        receive_folder(messages(File("x"), Chunk(b""), File("x"), Chunk(b""), Done()), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_node_of_another_version_is_refused() -> None:
    with pytest.raises(ConnectionLost, match=f"a: expected enginecmp {__version__}, got 0.0.0; install"):
        Visit(NODE, Said(Hello("0.0.0")))


def test_a_lost_node_is_told_with_its_own_words_made_harmless() -> None:
    visit = Visit(NODE, Said(Hello(__version__)))
    with pytest.raises(ConnectionLost, match=r"a: the connection ended \(it \\x1b\[31mburnt\)"):
        visit.drop("j")


def test_what_a_run_prints_reaches_nobody_as_control_characters() -> None:
    visit = Visit(NODE, Said(Hello(__version__), Line("\x1b]0;x\x07 a\nb"), Ended(0, [])))
    lines: list[str] = []
    assert visit.run("j", [], [], lines.append) == Ended(0, [])
    assert lines == [r"\x1b]0;x\x07 a b"]


def test_words_stand_for_the_paths_of_files_on_the_node(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"weights")
    channel = Said(Hello(__version__), At("/there/m.gguf"), Ended(0, []))
    Visit(NODE, channel).run("j", ["--model", "{0}", "{9}"], [Needed(str(tmp_path / "m.gguf"), "s")], print)
    reader = Reader(Said(channel.heard).read)
    assert reader.receive() == Put("s", "m.gguf", 7)
    assert reader.receive() == Run("j", "a", ["--model", "/there/m.gguf", "{9}"], None)


def test_a_run_of_other_weights_is_not_kept(tmp_path: Path) -> None:
    manifest = b'{"schema": "other"}'
    sent = (File("manifest.json"), Chunk(manifest), Chunk(b""), Done())
    with pytest.raises(ResultsError, match=r"a: .*expected schema"):
        Visit(NODE, Said(Hello(__version__), *sent)).collect("j", "r", tmp_path, "ab")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> LocalNodes:
    return LocalNodes(tmp_path_factory.mktemp("nodes"))


@pytest.fixture
def visit(place: LocalNodes) -> Iterator[Visit]:
    with visiting(place, place.nodes()[0]) as visit:
        yield visit


def test_weights_go_to_a_node_once_and_only_whole(visit: Visit, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(bytes(range(256)) * 2000)
    with pytest.raises(CmpError, match=r"a: m.gguf: expected SHA-256 0000.*, got .* on this node"):
        visit.put(Needed(str(file), "0" * 64))
    there = Path(visit.put(Needed(str(file), sha256(file))))
    assert there.read_bytes() == file.read_bytes()
    before = there.stat().st_mtime_ns
    assert visit.put(Needed(str(file), sha256(file))) == str(there)
    assert there.stat().st_mtime_ns == before
    assert [path.name for path in there.parent.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize(
    "asked", [Put("../x", "m", 1), Put("0" * 64, "../m", 1), Run("../x", "a", []), Send(), At("x")]
)
def test_a_node_refuses_names_that_lead_elsewhere_and_goes_on(asked: Message, visit: Visit) -> None:
    visit._send(asked)
    with pytest.raises(CmpError, match="a: expected"):
        visit._receive()
    visit.drop("nothing")


def jobs(folder: Path, tiny: ModelInfo, count: int = 2, *more: str) -> list[Job]:
    scenario = folder / "mini.toml"
    scenario.write_text(SCENARIO)
    files = [Needed(tiny.path, tiny.sha256), Needed(str(scenario), sha256(scenario))]
    words = [*WORDS, "--model", "{0}", "--scenario", "{1}", *more]
    return [
        Job(name=f"{folder.name}-{n}", part="p", words=[*words, "--seed", str(n)], files=files, sha256=tiny.sha256)
        for n in range(count)
    ]


class Heard:
    """What a schedule said."""

    def __init__(self, wait_for: str = "", then: Callable[[], None] = lambda: None) -> None:
        self.lines: list[str] = []
        self._wait_for, self._then = wait_for, then

    def changed(self, job: Job) -> None:
        self.lines.append(f"{job.node} {job.status}")

    def said(self, job: Job, line: str) -> None:
        self.lines.append(line)
        if self._wait_for and self._wait_for in line:
            self._wait_for = ""
            self._then()


def schedule(place: LocalNodes, jobs: list[Job], into: Path, heard: Heard) -> Schedule:
    return Schedule(place, place.nodes(), jobs, into, heard.changed, heard.said)


def test_each_job_of_a_part_runs_whole_on_a_node_of_its_own(place: LocalNodes, tiny: ModelInfo, tmp_path: Path) -> None:
    placed = jobs(tmp_path, tiny)
    schedule(place, placed, tmp_path, Heard()).run()
    assert [(job.status, job.error, len(job.runs)) for job in placed] == [("complete", "", 1)] * 2
    assert {job.node for job in placed} == {"a", "b"}
    for job in placed:
        manifest = read_manifest(tmp_path / job.runs[0])
        assert (manifest.status, manifest.environment["node"], manifest.model.sha256) == (
            *("complete", job.node),
            tiny.sha256,
        )
        assert not (Path(place._folder) / job.node / "fleet" / "jobs" / job.name).exists()


def test_ctrl_c_keeps_what_is_finished_and_resume_finishes_the_same_run(
    place: LocalNodes, tiny: ModelInfo, tmp_path: Path
) -> None:
    placed = jobs(tmp_path, tiny, 1, "-o", "b.decode_us=100000")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        schedule(place, placed, tmp_path, Heard("block 1/2", interrupt)).run()
    (job,) = placed
    (run,) = job.runs
    assert job.status == "waiting"
    assert read_manifest(tmp_path / run).status == "interrupted"
    finished = (tmp_path / run / "launches.jsonl").read_bytes()
    assert finished
    schedule(place, placed, tmp_path, Heard()).run()
    assert (job.status, job.runs) == ("complete", [run])
    assert read_manifest(tmp_path / run).status == "complete"
    assert (tmp_path / run / "launches.jsonl").read_bytes().startswith(finished)


def test_a_job_goes_to_another_node_when_its_own_is_killed(place: LocalNodes, tiny: ModelInfo, tmp_path: Path) -> None:
    (job,) = placed = jobs(tmp_path, tiny, 1)
    heard = Heard("block 1/2", lambda: place.channels["a"]._process.kill())
    schedule(place, placed, tmp_path, heard).run()
    assert (job.status, job.node) == ("complete", "b")
    assert heard.lines[0] == "a running"
    assert "a waiting" in heard.lines


def test_without_another_node_the_job_fails_with_the_reason(place: LocalNodes, tiny: ModelInfo, tmp_path: Path) -> None:
    placed = jobs(tmp_path, tiny, 1, "--blocks", "1")
    alone = place.nodes()[:1]
    heard = Heard("block 1/1", lambda: place.channels["a"]._process.kill())
    Schedule(place, alone, placed, tmp_path, heard.changed, heard.said).run()
    assert placed[0].status == "failed"
    assert "a: the connection ended" in placed[0].error


def test_a_run_that_fails_is_told_with_its_last_line(place: LocalNodes, tiny: ModelInfo, tmp_path: Path) -> None:
    (job,) = placed = jobs(tmp_path, tiny, 1, "--engines", "nonsense")
    schedule(place, placed, tmp_path, Heard()).run()
    assert job.status == "failed"
    assert "exit code 2: cmp: unknown engine 'nonsense'" in job.error


def test_two_runs_at_once_on_one_node_wait_for_each_other(place: LocalNodes, tiny: ModelInfo, tmp_path: Path) -> None:
    first, second = jobs(tmp_path, tiny, 2, "--blocks", "1")
    node = place.nodes()[0]
    lines: list[str] = []
    under_way = threading.Event()
    ends: list[float] = []

    def run_first() -> None:
        with visiting(place, node) as visit:
            visit.run(first.name, first.words, first.files, lambda _: under_way.set())
            ends.append(time.monotonic())

    thread = threading.Thread(target=run_first)
    thread.start()
    assert under_way.wait(60)
    with visiting(place, node) as visit:
        assert visit.run(second.name, second.words, second.files, lines.append).code == 0
    thread.join()
    assert lines[0].startswith("waits: results folder")
    assert ends[0] < time.monotonic()
    assert "block 1/1" in " ".join(lines)


def test_the_state_of_a_fleet_can_be_read_back(tmp_path: Path) -> None:
    from enginecmp.cli.fleet import resume_fleet
    from enginecmp.run.options import RunOptions

    for name, run in (("../x", "r"), ("j", "../r")):
        state = {"on": "ssh:x", "jobs": [{"name": name, "part": "p", "words": [], "runs": [run]}]}
        (tmp_path / "fleet.json").write_text(json.dumps(state))
        with pytest.raises(ResultsError, match="expected the name of a"):
            resume_fleet(RunOptions(), tmp_path)


def test_a_scenario_that_cannot_be_sent_is_refused_before_anything_is_placed(tiny: ModelInfo, tmp_path: Path) -> None:
    from enginecmp.cli.fleet import start_fleet
    from enginecmp.run.options import RunOptions

    (tmp_path / "hosts.toml").write_text('[[host]]\nname = "a"\naddress = "a.invalid"\n')
    os.mkfifo(tmp_path / "fifo.toml")
    for name, told in (
        ("none.toml", "No such file or directory"),
        ("fifo.toml", "expected a regular file, got a FIFO"),
    ):
        options = RunOptions(model=tiny.path, scenario=str(tmp_path / name), out=tmp_path / "results")
        with pytest.raises(UsageError, match=f"^scenario .*{name}: {told}"):
            start_fleet(options, f"ssh:{tmp_path / 'hosts.toml'}")
    assert not (tmp_path / "results").exists()
