"""What servers say on /metrics, read beside a launch.

pages/: llama_server.txt and vllm.txt are answers of llama-server 0.7.0 and vLLM 0.32.0; sglang.txt and tgi.txt have the
form of their documentation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from enginecmp.plugins.own_files import keep, own_folder
from enginecmp_openai_server import announcement
from enginecmp_openai_server.metric_names import NAMES, wanted
from enginecmp_openai_server.sensor import ServerSensor, read_page

PAGES = Path(__file__).parent / "pages"
TOLD = {
    "llama_server": {
        "server_requests_running": 0.0,
        "server_requests_waiting": 0.0,
        "server_prefix_query_tokens": 3.0,
        "server_prefix_hit_tokens": 0.0,
        "server_prompt_tokens": 3.0,
        "server_output_tokens": 8.0,
    },
    "sglang": {
        "server_requests_running": 4.0,
        "server_requests_waiting": 2.0,
        "server_kv_used_share": 0.31,
        "server_prefix_query_tokens": 1200.0,
        "server_prefix_hit_tokens": 360.0,
        "server_prompt_tokens": 1200.0,
        "server_output_tokens": 640.0,
    },
    "vllm": {
        "server_requests_running": 0.0,
        "server_requests_waiting": 0.0,
        "server_kv_used_share": 0.0,
        "server_preemptions": 0.0,
        "server_prefix_query_tokens": 10.0,
        "server_prefix_hit_tokens": 0.0,
        "server_prompt_tokens": 10.0,
        "server_output_tokens": 16.0,
    },
    "tgi": {
        "server_requests_running": 3.0,
        "server_requests_waiting": 1.0,
        "server_prompt_tokens": 900.0,
        "server_output_tokens": 450.0,
    },
}

pytest.importorskip("prometheus_client", reason="pip install prometheus-client")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def sensor() -> Iterator[ServerSensor]:
    made = ServerSensor()
    yield made
    made.close()


@pytest.mark.parametrize("kind", sorted(TOLD))
def test_a_page_is_read_under_our_names(kind: str) -> None:
    assert read_page(kind, (PAGES / f"{kind}.txt").read_bytes()) == TOLD[kind]


def test_only_wanted_lines_reach_the_parser() -> None:
    page = b'broken{ line\nvllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 3.0\n\xff\n'
    assert read_page("vllm", page) == {"server_requests_running": 5.0}
    with pytest.raises(ValueError, match=r"Invalid|line|could not"):
        read_page("vllm", b"vllm:num_requests_running{engine= 2.0\n")


def test_a_value_that_needs_two_samples_is_absent_with_one() -> None:
    assert read_page("llama_server", b"llamacpp:prompt_tokens_total 3\n") == {}


@pytest.mark.parametrize("kind", sorted(NAMES))
def test_every_name_is_one_that_the_telemetry_file_holds(kind: str) -> None:
    assert all(name.startswith("server_") and name.islower() for name in NAMES[kind])
    assert wanted(kind)


def test_the_server_of_a_launch_is_read_while_it_is_loaded(stub: Any, drive: Any, sensor: ServerSensor) -> None:
    stub.models = [{"id": "m", "owned_by": "sglang"}]
    stub.routes["/metrics"] = lambda talk, body: talk.reply(200, (PAGES / "sglang.txt").read_bytes())
    pids = (os.getpid(), 1)
    assert "/metrics" in str(sensor.start())
    assert sensor.read(pids) == ({}, ())
    driver = drive()
    assert sensor.read(pids) == (TOLD["sglang"], ())
    # Another launch's process has another server, or none.
    assert sensor.read((1, os.getpid())) == ({}, ())
    assert sensor.read(()) == ({}, ())
    assert sensor.read(pids)[0] == TOLD["sglang"]
    driver.close()
    assert sensor.read(pids) == ({}, ())


def test_a_server_that_does_not_tell_is_asked_three_times(stub: Any, drive: Any, sensor: ServerSensor) -> None:
    asked: list[int] = []

    def refuse(talk: Any, body: Any) -> None:
        asked.append(1)
        talk.reply(404, {"error": "no such page"})

    stub.models = [{"id": "m", "owned_by": "vllm"}]
    stub.routes["/metrics"] = refuse
    drive()
    for _ in range(6):
        assert sensor.read((os.getpid(),)) == ({}, ())
    assert len(asked) == 3


def test_a_flood_or_nonsense_is_no_reading(stub: Any, drive: Any, sensor: ServerSensor) -> None:
    pages = [b"x" * (2 << 20), b"vllm:num_requests_running{\n", b"vllm:num_requests_running 1\n"]
    stub.models = [{"id": "m", "owned_by": "vllm"}]
    stub.routes["/metrics"] = lambda talk, body: talk.reply(200, pages.pop(0))
    drive()
    told = [sensor.read((os.getpid(),))[0] for _ in range(3)]
    assert told == [{}, {}, {"server_requests_running": 1.0}]


def test_kinds_without_such_a_page_are_not_asked(stub: Any, drive: Any, sensor: ServerSensor) -> None:
    asked: list[int] = []
    stub.routes["/metrics"] = lambda talk, body: asked.append(1)
    drive()
    assert sensor.read((os.getpid(),)) == ({}, ())
    assert not asked


def test_what_a_killed_worker_left_is_not_believed_of_another_process() -> None:
    began = psutil.Process().create_time()
    for content in (announcement.Announced("vllm", {}, began - 100.0), {"kind": 3}):
        keep(own_folder("servers"), str(os.getpid()), msgspec.json.encode(content), 9)
        assert announcement.announced(os.getpid()) is None
    announcement.announce("vllm", {"url": "http://a:1"})
    found = announcement.announced(os.getpid())
    assert found is not None
    assert (found.kind, found.extra) == ("vllm", {"url": "http://a:1"})
    announcement.withdraw()
    assert announcement.announced(os.getpid()) is None
