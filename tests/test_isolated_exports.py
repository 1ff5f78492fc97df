"""Exports of Hugging Face folders: made once, kept, refused; what a builder would get wrong in silence."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from enginecmp.errors import UnsupportedModel
from enginecmp.plugin_tools.exporting import exported, exports_folder

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "cache"))


def export(code: str, key: str = "abc-fp32-1.0") -> Path:
    """Export by a program that is given the target as its only argument."""
    return exported(
        *("engine", "the exporter", "/the/folder"),
        key=key,
        needs="model",
        command=lambda target: [sys.executable, "-c", code, str(target)],
    )


WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1], 'model').write_text('whole')"


def test_an_export_is_made_once_and_kept_by_its_key() -> None:
    target = export(WRITES)
    assert target == exports_folder("engine") / "abc-fp32-1.0"
    assert (target / "model").read_text() == "whole"
    assert export("raise SystemExit('must not run again')") == target
    with pytest.raises(UnsupportedModel, match="ran again"):
        export("raise SystemExit('ran again')", key="abc-int8-1.0")


@pytest.mark.parametrize(
    ("code", "got"),
    [
        ("raise ValueError('no such layer')", "got: ValueError: no such layer; /the/folder"),
        ("pass", "got: exit code 0; /the/folder"),  # it said that it was done, and wrote nothing
        ("import os; os.kill(os.getpid(), 9)", "got: exit code -9; /the/folder"),
    ],
)
def test_a_failed_export_says_why_and_leaves_nothing(code: str, got: str) -> None:
    with pytest.raises(UnsupportedModel) as raised:
        export(code)
    assert str(raised.value) == f"engine: expected a folder that the exporter exports, {got}"
    assert [*exports_folder("engine").iterdir()] == []


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "plugins" / "onnxruntime_genai"))
    return importlib.import_module("enginecmp_onnxruntime_genai.building")


def folder_saying(folder: Path, **config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_scaling_that_onnxruntime_genai_would_ignore_is_refused(
    building: ModuleType, key: str, tmp_path: Path
) -> None:
    for kind in ("linear", "yarn"):
        folder = folder_saying(tmp_path, architectures=["LlamaForCausalLM"], **{key: {"rope_type": kind}})
        with pytest.raises(UnsupportedModel, match=f"expected a llama with {key} .*got '{kind}'"):
            building.refuse_unscaled(folder)
    building.refuse_unscaled(folder_saying(tmp_path, architectures=["LlamaForCausalLM"], **{key: None}))
    building.refuse_unscaled(
        folder_saying(tmp_path, architectures=["LlamaForCausalLM"], **{key: {"rope_type": "llama3"}})
    )
    # Its other classes read it.
    building.refuse_unscaled(folder_saying(tmp_path, architectures=["Qwen2ForCausalLM"], **{key: {"type": "linear"}}))


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({}, None),
        ({"sliding_window": None}, None),
        ({"sliding_window": 4096}, 4096),
        ({"sliding_window": 4096, "use_sliding_window": False}, None),  # qwen2's way to say that it has none
        ({"sliding_window": 4096, "use_sliding_window": True}, 4096),
    ],
)
def test_the_window_is_read(
    building: ModuleType, config: dict[str, object], window: int | None, tmp_path: Path
) -> None:
    assert building.window_of(folder_saying(tmp_path, **config)) == window
