"""What `--engines` and `-o` mean."""

from __future__ import annotations

import pytest

from enginecmp.errors import UsageError
from enginecmp.plugins import Plugin
from enginecmp.selection import SERVER_ENGINE, implied_options, parse_devices, parse_engines, parse_options
from enginecmp.types import EngineInfo


def plugin(name: str) -> Plugin:
    info = EngineInfo(name=name, version="1", licence="MIT", devices=("cpu",), architectures=(), quantizations=())
    return Plugin(name=name, module=name, info=info)


PLUGINS = [plugin("llamacpp"), plugin("mistralrs"), plugin(SERVER_ENGINE), Plugin(name="gone", error="no such module")]


def names(text: str) -> dict[str, str]:
    return {label: found.name for label, found in parse_engines(text, PLUGINS).items()}


def test_all_means_every_working_engine_but_the_server() -> None:
    assert names("all") == {"llamacpp": "llamacpp", "mistralrs": "mistralrs"}


def test_a_label_stands_before_the_equals_sign() -> None:
    assert names("fast=llamacpp, mistralrs") == {"fast": "llamacpp", "mistralrs": "mistralrs"}


@pytest.mark.parametrize(
    ("text", "label", "url"),
    [
        ("openai:http://127.0.0.1:8000/v1", "openai", "http://127.0.0.1:8000/v1"),
        ("vllm=openai:http://host:8000/v1", "vllm", "http://host:8000/v1"),
        ("vllm=openai:http://host/v1?api=2", "vllm", "http://host/v1?api=2"),
    ],
)
def test_an_address_makes_the_server_an_engine(text: str, label: str, url: str) -> None:
    assert names(f"{text},llamacpp") == {label: SERVER_ENGINE, "llamacpp": "llamacpp"}
    options = parse_options(implied_options(f"{text},llamacpp"), [label, "llamacpp"])
    assert options == {label: {"url": url}, "llamacpp": {}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("llamacp", "did you mean 'llamacpp'"),
        ("gone", "its plugin is broken: no such module"),
        ("llamacpp,llamacpp", "twice"),
        ("openai:http://a,openai:http://b", "'openai' twice"),
        ("a b=llamacpp", "label 'a b'"),
        (" , ", "no engine named"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        parse_engines(text, PLUGINS)


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        (None, {}),
        ("cuda", {"a": "cuda", "b": "cuda"}),
        ("b=cuda", {"b": "cuda"}),
        ("a=emulated, b=cpu", {"a": "emulated", "b": "cpu"}),
        ("a=cpu,cuda", {"a": "cpu", "b": "cuda"}),
    ],
)
def test_a_device_is_for_every_engine_or_for_the_one_named(text: str | None, devices: dict[str, str]) -> None:
    assert parse_devices(text, ["a", "b"]) == devices


@pytest.mark.parametrize("text", ["c=cpu", "a=", "=cuda"])
def test_a_device_for_nobody_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected ENGINE=DEVICE"):
        parse_devices(text, ["a", "b"])
