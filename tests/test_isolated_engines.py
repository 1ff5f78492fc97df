"""Engines in environments of their own: their facts without them, their conformance where they are installed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import unchanged

from enginecmp.errors import EngineError, UnknownOption
from enginecmp.plugins.catalog import KNOWN, KnownEngine
from enginecmp.plugins.discovery import discover
from enginecmp.plugins.facts import wrong_info
from enginecmp.testing.tiny_models import tiny_model
from enginecmp.types import LoadOptions

pytestmark = unchanged.left_out_with("plugins/transformers", "plugins/openvino", "plugins/onnxruntime_genai")

ROOT = Path(__file__).parent.parent
ISOLATED = [engine for engine in KNOWN if engine.how == "isolated plugin"]


@pytest.fixture(params=ISOLATED, ids=lambda engine: engine.name)
def engine(request: pytest.FixtureRequest) -> KnownEngine:
    return request.param


@pytest.fixture
def module(engine: KnownEngine, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "plugins" / engine.name))
    return importlib.import_module(f"enginecmp_{engine.name}")


def test_facts_are_right_and_name_the_option_keys(engine: KnownEngine, module: ModuleType) -> None:
    info = module.cmp_engine()
    assert info.name == engine.name
    assert info.reads_hf_folders
    assert [*wrong_info(info)] == []
    assert set(info.option_names) >= {name.rpartition(":")[2] for name in info.tunables} - {"threads"}


def test_where_it_is_not_installed_the_probe_names_the_command(engine: KnownEngine, module: ModuleType) -> None:
    probe = module.cmp_probe(LoadOptions())
    if probe.ok:
        pytest.skip(f"{engine.name} is installed here")
    assert "is not installed" in probe.reason
    assert probe.fix == engine.brings


def test_wrong_options_are_refused_before_anything_large_is_imported(module: ModuleType, tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    with pytest.raises(UnknownOption, match="unknown option 'thraeds'"):
        module.cmp_load(model, LoadOptions(extra={"thraeds": "4"}))
    with pytest.raises(EngineError, match="expected"):
        module.cmp_load(model, LoadOptions(device="metal"))
    with pytest.raises(EngineError, match="expected a Hugging Face folder from the host"):
        module.cmp_load(model, LoadOptions())


def test_it_is_pinned(engine: KnownEngine) -> None:
    text = (ROOT / "plugins" / engine.name / "pyproject.toml").read_text()
    assert '"transformers==' in text
    assert '"torch==' in text


def test_installed_it_passes_the_gate_and_the_heart_of_the_conformance_suite(engine: KnownEngine) -> None:
    if engine.name not in {plugin.name for plugin in discover() if plugin.info is not None}:
        pytest.skip(f"not installed here; {engine.brings}")
    chosen = "gate or equivalent or prefill or float64 or refused_and_the_engine"
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(
        [*command, "--pyargs", "enginecmp.testing", "--engine", engine.name, "-k", chosen],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_every_known_engine_is_listed_with_its_command() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "cmp"), "engines", "--available", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = {row["name"]: row for row in json.loads(done.stdout)["engines"]}
    servers = {"vllm-server", "sglang-server", "tensorrt_llm-server", "tgi", "exllamav3", "ollama", "llama-server"}
    assert rows.keys() >= {*servers, "llamacpp"}
    assert rows["llamacpp"]["status"] == "installed"
    assert all(row["install"] for row in rows.values())
    for row in rows.values():
        assert (ROOT / row["docs"]).is_file(), row


def test_every_plugin_of_ours_is_known_and_every_command_leads_to_one() -> None:
    folders = {path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml")}
    # Workloads, a placement, indexes, scores of texts.
    others = {"diffusion", "federation", "ray", "retrieval", "text_quality"}
    assert folders - others == {engine.name for engine in KNOWN}
    assert len({engine.name for engine in KNOWN}) == len(KNOWN)
    for engine in ISOLATED:
        assert engine.brings.split()[-1] == f"plugins/{engine.name}"
    assert msgspec.json.encode([engine._asdict() for engine in KNOWN])
