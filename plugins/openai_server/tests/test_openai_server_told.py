"""What is told of the way to a server, of its GPUs, and of its reasoning."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from enginecmp import LoadOptions
from enginecmp_openai_server import round_trip
from enginecmp_openai_server.client import Client
from enginecmp_openai_server.gpus import gpus_of
from enginecmp_openai_server.options import read_settings


def test_the_way_to_a_server_is_in_every_sample(stub: Any, drive: Any) -> None:
    driver = drive()
    _, _, metrics = driver.request([1, 2, 3], 4)
    median, spread = metrics["network_round_trip_seconds"], metrics["network_round_trip_iqr_seconds"]
    assert 0 < median < 1
    assert 0 <= spread < 1
    # The list of models takes the same way, and HTTP beside.
    assert metrics["http_round_trip_seconds"] > 0


def test_connections_for_it_are_made_eleven_times_and_no_more(stub: Any) -> None:
    client = Client(read_settings(LoadOptions(extra={"url": stub.url})))
    before = stub.connections
    found = round_trip.round_trips(client)
    client.close()
    assert set(found) == {
        *("network_round_trip_seconds", "network_round_trip_iqr_seconds", "http_round_trip_seconds"),
    }
    # Those of the network, and one that all questions share.
    assert stub.connections - before <= 12


def test_what_nobody_answers_is_absent() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        assert round_trip.round_trips(Client(read_settings(LoadOptions(extra={"url": url})))) == {}


@pytest.mark.parametrize(
    ("start", "device", "extra", "expected"),
    [
        ("vllm serve m --tensor-parallel-size 4", "cuda", {}, {"tensor_parallel_size": 4, "gpus": 4}),
        ("vllm serve m -tp=2 --pipeline-parallel-size 3", "cuda", {}, {"tensor_parallel_size": 2, "gpus": 6}),
        ("sglang serve --tp 2 --dp 2", "cuda", {}, {"tensor_parallel_size": 2, "gpus": 4}),
        ("trtllm-serve m --tp_size 8", "cuda", {}, {"tensor_parallel_size": 8, "gpus": 8}),
        ("text-generation-launcher --num-shard 2", "cuda", {}, {"tensor_parallel_size": 2, "gpus": 2}),
        ("vllm serve m", "cuda", {}, {"tensor_parallel_size": 1, "gpus": 1}),
        ("vllm serve m --tensor-parallel-size 2", "cpu", {}, {"tensor_parallel_size": 2}),
        ("", "cuda", {}, {}),
        ("", "cuda", {"gpus": "8"}, {"gpus": 8}),
        ("vllm serve --tp-something 4 --http 2", "cuda", {}, {"tensor_parallel_size": 1, "gpus": 1}),
    ],
)
def test_gpus_are_those_of_the_start_command(start: str, device: str, extra: dict[str, str], expected: Any) -> None:
    given = {"url": "http://127.0.0.1:1/v1", **extra, **({"start": start} if start else {})}
    assert gpus_of(read_settings(LoadOptions(extra=given)), device) == expected


def test_the_first_visible_token_is_apart_from_reasoning(stub: Any, drive: Any) -> None:
    def reason(talk: Any, body: dict[str, Any]) -> None:
        talk.begin()
        for key in ("reasoning_content", "reasoning", "content", "content"):
            talk.event({"choices": [{"index": 0, "delta": {key: "x"}, "finish_reason": None}]})
        talk.finish()
        details = {"reasoning_tokens": 2}
        usage = {"prompt_tokens": talk.stub.prompt_tokens(body), "completion_tokens": 4}
        talk.event({"choices": [], "usage": {**usage, "completion_tokens_details": details}})
        talk.done()
        talk.end()

    driver = drive()
    yielded, total, metrics = driver.request([1, 2, 3], 4)
    assert "first_visible_token_seconds" not in metrics
    stub.behaviours.append(reason)
    yielded, total, metrics = driver.request([1, 2, 3], 4)
    assert (len(yielded), total) == (4, 4)
    assert metrics["reasoning_tokens"] == 2
    assert metrics["first_visible_token_seconds"] >= metrics["headers_seconds"] > 0


def test_reasoning_alone_shows_nothing(stub: Any, drive: Any) -> None:
    def reason(talk: Any, body: dict[str, Any]) -> None:
        talk.begin()
        for _ in range(4):
            talk.event({"choices": [{"index": 0, "delta": {"reasoning": "x"}, "finish_reason": None}]})
        talk.finish()
        talk.usage(talk.stub.prompt_tokens(body), 4)
        talk.done()
        talk.end()

    driver = drive()
    stub.behaviours.append(reason)
    _, total, metrics = driver.request([1, 2, 3], 4)
    assert total == 4
    assert "first_visible_token_seconds" not in metrics
