"""The servers that `--engines` knows by name."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from enginecmp import EngineError, LoadOptions, ModelInfo, Preset
from enginecmp.plugins.facts import wrong_info
from enginecmp_openai_server import loading, process
from enginecmp_openai_server.facts import cmp_engine
from enginecmp_openai_server.kinds import KINDS
from enginecmp_openai_server.options import KEYS, read_settings
from enginecmp_openai_server.presets import of_kind, presets

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=sorted(presets()))
def preset(request: pytest.FixtureRequest) -> Preset:
    return presets()[request.param]


def test_every_preset_is_complete_and_passes_the_rules_for_facts(preset: Preset) -> None:
    assert list(wrong_info(cmp_engine())) == []
    assert preset.what
    assert preset.program
    assert preset.install
    assert (ROOT / preset.docs).is_file()
    assert preset.options.keys() <= set(KEYS)
    assert preset.options.get("server", "openai") in KINDS


def test_no_two_presets_share_a_port_or_use_a_usual_one() -> None:
    ports = [read_settings(LoadOptions(extra=dict(p.options))).address.port for p in presets().values()]
    assert len(set(ports)) == len(ports)
    assert not {8000, 8080, 30000, 11434, 5000} & set(ports)


def test_every_place_in_a_start_command_is_one_that_is_replaced(preset: Preset, tiny: ModelInfo) -> None:
    for numerics in ("default", "exact"):
        options = LoadOptions(numerics=numerics, max_sequences=3, context_tokens=64, extra=dict(preset.options))
        settings = read_settings(options)
        arguments = process.arguments_of(settings.start, loading.places(settings, tiny, options))
        assert not [a for a in arguments if "{" in a], arguments
        assert any(str(settings.address.port) in a for a in arguments)
        flags = preset.options.get("exact_flags", "")
        assert (" ".join(arguments).endswith(flags)) is (numerics == "exact" or not flags)


def test_the_program_of_a_preset_is_what_its_command_starts(preset: Preset) -> None:
    assert preset.program in shlex.split(preset.options["start"])[0] or preset.program in preset.options["start"]


def test_kinds_that_can_be_scored_have_a_preset_that_can_be_asked_exactly() -> None:
    for name, kind in KINDS.items():
        if kind.score:
            found = of_kind(name)
            assert found is not None
            assert found.options["exact_flags"]


def test_flags_are_added_to_the_start_command_and_exact_ones_only_there() -> None:
    extra = {"url": "http://127.0.0.1:1/v1", "start": "serve", "flags": "--tp 2", "exact_flags": "--dtype float32"}
    assert read_settings(LoadOptions(extra=extra)).start == "serve --tp 2"
    assert read_settings(LoadOptions(extra=extra, numerics="exact")).start == "serve --tp 2 --dtype float32"
    with pytest.raises(EngineError, match="got flags alone"):
        read_settings(LoadOptions(extra={"url": extra["url"], "flags": "--tp 2"}))


@pytest.mark.parametrize("key", ["flags", "exact_flags"])
def test_flags_with_a_secret_are_refused(key: str) -> None:
    extra = {"url": "http://127.0.0.1:1/v1", "start": "serve", key: "--api-key abcdef123456"}
    with pytest.raises(EngineError, match=f"option {key} without a secret"):
        read_settings(LoadOptions(extra=extra))


def test_variables_in_front_of_a_command_reach_it_and_home_is_expanded(tmp_path: Path) -> None:
    said = tmp_path / "said"
    code = f"import os; open({str(said)!r}, 'w').write(os.environ['A'] + os.environ['B'])"
    started = process.start(process.arguments_of(f'A=1 B={{port}} {sys.executable} -c "{code}"', {"port": "7"}), "")
    assert started.server.wait(20) == 0
    assert said.read_text() == "17"
    assert process.arguments_of("~/x a~/b", {}) == [os.path.expanduser("~/x"), "a~/b"]


def test_a_started_server_is_ready_when_it_has_a_model(stub: Any, drive: Any) -> None:
    driver = drive()
    client = driver.session.server.client
    assert loading._answers(client, 5.0)
    stub.models = []
    assert not loading._answers(client, 5.0)


def test_ollama_s_command_creates_the_model_in_a_store_that_goes_with_it(tmp_path: Path, tiny: ModelInfo) -> None:
    """The shell in it runs, against a program that writes down what it is told."""
    log, bin_folder = tmp_path / "log", tmp_path / "bin"
    bin_folder.mkdir()
    program = bin_folder / "ollama"
    program.write_text(
        f'#!/bin/sh\necho "$1 $OLLAMA_HOST $OLLAMA_MODELS" >>{log}\n'
        f'case $1 in serve) exec sleep 60;; create) cat "$4" >>{log};; esac\n'
    )
    program.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = LoadOptions(extra={**presets()["ollama"].options, "url": f"http://127.0.0.1:{port}/v1"})
    settings = read_settings(options)
    arguments = process.arguments_of(settings.start, loading.places(settings, tiny, options))
    started = process.start([f"PATH={bin_folder}:{os.environ['PATH']}", *arguments], "")
    process.wait_until(lambda _: log.exists() and "FROM" in log.read_text(), started, 20.0)
    process.end(started)
    lines = log.read_text().splitlines()
    assert f"FROM {tiny.path}" in lines
    called = {line.split()[0]: line.split()[1:] for line in lines}
    assert called["create"] == called["serve"] == [f"127.0.0.1:{port}", called["create"][1]]
    assert not Path(called["create"][1]).exists()


def test_a_started_server_has_room_for_what_scoring_adds(tiny: ModelInfo) -> None:
    options = LoadOptions(context_tokens=17, max_sequences=3, extra=dict(presets()["vllm-server"].options))
    named = loading.places(read_settings(options), tiny, options)
    # 17 positions are asked for with a prompt of 18 ids and one more to generate.
    assert (named["context"], named["all_contexts"]) == ("19", "57")
