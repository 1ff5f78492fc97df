"""What `--engines` and `-o` mean."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from enginecmp.errors import UsageError
from enginecmp.plugins.external import discover_external
from enginecmp.plugins.plugin import Plugin
from enginecmp.plugins.presets import presets_of, with_users_presets, without_program
from enginecmp.run.selection import SERVER_ENGINE, implied_options, parse_devices, parse_engines, parse_options
from enginecmp.types import EngineInfo, Preset, Probe


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
    ("text", "suggested"),
    [
        ("vllm", "vllm=openai:http://127.0.0.1:8000/v1"),
        ("fast=vLLM", "fast=openai:http://127.0.0.1:8000/v1"),
        ("sglang,llamacpp", "sglang=openai:http://127.0.0.1:30000/v1"),
        ("ollama", "ollama=openai:http://127.0.0.1:11434/v1"),
        ("llama-server", "llama-server=openai:http://127.0.0.1:8080/v1"),
        ("openai", "openai:http://127.0.0.1:8000/v1"),
        ("http://host:8000/v1", "openai:http://host:8000/v1"),
        ("llamacpp,https://host/v1?a=b", "openai:https://host/v1?a=b"),
        ("mine=http://host:8000/v1", "mine=openai:http://host:8000/v1"),
    ],
)
def test_a_server_by_name_or_bare_address_is_told_what_to_write(text: str, suggested: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_engines(text, PLUGINS)
    assert str(raised.value).endswith(f": --engines {suggested}")
    assert list(parse_engines(suggested, PLUGINS).values()) == [PLUGINS[2]]


def test_an_engine_of_a_server_s_name_is_that_engine() -> None:
    assert list(parse_engines("vllm", [*PLUGINS, plugin("vllm")])) == ["vllm"]


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


def test_an_option_of_bytes_that_are_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match=r"-o fake\.x=\\udcff: expected text in UTF-8, got other bytes"):
        parse_options(["fake.x=\udcff"], ["fake"])


PRESET = Preset(what="a server", program="sh", install="get it", options={"url": "http://a:1/v1", "start": "sh x"})
WITH_PRESET = [
    *PLUGINS[:2],
    Plugin(
        name=SERVER_ENGINE,
        module=SERVER_ENGINE,
        info=msgspec.structs.replace(PLUGINS[2].info, presets={"vllm-server": PRESET}) if PLUGINS[2].info else None,
    ),
]


@pytest.mark.parametrize(
    ("text", "label"), [("vllm-server", "vllm-server"), ("vllm_server", "vllm-server"), ("x=vllm-server", "x")]
)
def test_a_preset_is_its_engine_with_its_options(text: str, label: str) -> None:
    chosen = parse_engines(f"{text},llamacpp", WITH_PRESET)
    assert {key: found.name for key, found in chosen.items()} == {label: SERVER_ENGINE, "llamacpp": "llamacpp"}
    implied = implied_options(f"{text},llamacpp", WITH_PRESET)
    assert parse_options([*implied, f"{label}.start=other"], chosen)[label] == {**PRESET.options, "start": "other"}


def test_a_server_with_a_preset_is_told_both_ways() -> None:
    with pytest.raises(UsageError) as raised:
        parse_engines("vllm", WITH_PRESET)
    assert str(raised.value).endswith("8000/v1, or started for each launch: --engines vllm-server")
    with pytest.raises(UsageError, match="did you mean 'vllm-server'"):
        parse_engines("vllm-srver", WITH_PRESET)


def test_a_missing_program_is_one_line_with_what_installs_it() -> None:
    plugin_of = WITH_PRESET[2]
    assert plugin_of.info is not None
    assert without_program(plugin_of, PRESET.options) is None
    gone = msgspec.structs.replace(PRESET, program="no-such-program-here")
    lacking = msgspec.structs.replace(plugin_of, info=msgspec.structs.replace(plugin_of.info, presets={"v": gone}))
    found = without_program(lacking, {**PRESET.options, "url": "http://b:2/v1", "flags": "-x"})
    assert found == Probe(
        ok=False, reason="expected the program 'no-such-program-here', it is not installed", fix="get it"
    )
    # Somebody who says how it is started knows where it is.
    assert without_program(lacking, {**PRESET.options, "start": "elsewhere"}) is None


def test_a_user_s_preset_is_made_from_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "engines.toml"
    file.write_text(
        '[two]\npreset_of = "vllm-server"\noptions = { flags = "--tp 2" }\n'
        f'[own]\npreset_of = "{SERVER_ENGINE}"\nwhat = "own"\noptions = {{ url = "http://c:3/v1" }}\n'
        '[bad]\npreset_of = "vllm-srver"\n[worse]\npreset_of = "two"\noptoins = {}\n[llamacpp]\npreset_of = "two"\n'
        '[wrong]\npreset_of = "two"\noptions = { flags = 2 }\n'
    )
    monkeypatch.setenv("CMP_ENGINES", str(file))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    plugins = with_users_presets(WITH_PRESET)
    presets = presets_of(plugins)
    assert presets["two"].preset == msgspec.structs.replace(PRESET, options={**PRESET.options, "flags": "--tp 2"})
    assert presets["own"].preset.options == {"url": "http://c:3/v1"}
    errors = {found.name: found.error or "" for found in plugins if found.error and found.source}
    assert "did you mean 'vllm-server'" in errors["bad"]
    assert "unknown key 'optoins'; did you mean 'options'" in errors["worse"]
    assert "a name of its own" in errors["llamacpp"]
    assert "expected str, got int" in errors["wrong"]
    assert [found.name for found in discover_external() if found.source == str(file)] == []
