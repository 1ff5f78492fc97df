"""What the plugin says of itself, what may be set, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest

from enginecmp import EngineError, LoadOptions, ModelInfo, UnknownOption
from enginecmp_custom_cuda import DISTRIBUTION, cmp_engine, cmp_load
from enginecmp_custom_cuda.config import ARCHITECTURES
from enginecmp_custom_cuda.options import MAX_SEQUENCES, Settings, read_settings
from enginecmp_custom_cuda.weights.kinds import KINDS

README = Path(__file__).parents[1] / "README.md"
NOWHERE = ModelInfo(
    name="none", path="/nowhere.gguf", sha256="", architecture="llama", parameters=1, quantization="F32", bytes=1,
    context_tokens=64, vocabulary=8,
)  # fmt: skip


def test_discovery_imports_neither_numpy_nor_the_driver() -> None:
    code = (
        "import sys, enginecmp_custom_cuda as plugin; plugin.cmp_engine();"
        "print(*{'numpy', 'cuda', 'cuda.bindings'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_facts_are_those_of_the_modules_that_keep_the_promises() -> None:
    info = cmp_engine()
    assert info.name == "custom_cuda"
    assert info.version == metadata.version(DISTRIBUTION)
    assert info.architectures == ARCHITECTURES
    assert set(info.quantizations) == set(KINDS)
    assert info.max_concurrency == MAX_SEQUENCES
    assert info.devices == ("cuda", "emulated")


def test_tunables_are_options_and_begin_with_the_default() -> None:
    for key, values in cmp_engine().tunables.items():
        name = key.partition(":")[2]
        default = getattr(Settings(), name)
        assert values[0] == str(int(default) if isinstance(default, bool) else default)
        for value in values:
            read_settings(LoadOptions(extra={name: value}))


def test_the_readme_lists_every_option_with_its_default() -> None:
    text = README.read_text(encoding="utf-8").partition("\n## Options\n")[2].partition("\n## ")[0]
    for name in Settings.__struct_fields__:
        default = getattr(Settings(), name)
        shown = int(default) if isinstance(default, bool) else default
        rows = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert len(rows) == 1, f"README.md: expected one row for {name}"
        assert rows[0].endswith(f"| {shown} |")


def test_defaults_are_what_the_facts_call_tuned() -> None:
    assert read_settings(LoadOptions()) == Settings(
        precise=False, kv="f16", overlap=True, ahead=8, decoder="graph", prefill_chunk=512, gemm="auto"
    )


def test_every_option_is_read() -> None:
    extra = {"precise": "1", "kv": "f32", "overlap": "0", "ahead": "3", "decoder": "launches"}
    extra |= {"prefill_chunk": "96", "gemm": "cublaslt"}
    assert set(extra) == set(Settings.__struct_fields__)
    assert read_settings(LoadOptions(extra=extra)) == Settings(
        precise=True, kv="f32", overlap=False, ahead=3, decoder="launches", prefill_chunk=96, gemm="cublaslt"
    )


def test_exact_numerics_are_float32_whatever_the_user_chose() -> None:
    settings = read_settings(LoadOptions(numerics="exact", extra={"kv": "f16", "precise": "0", "ahead": "2"}))
    assert (settings.precise, settings.kv, settings.ahead) == (True, "f32", 2)


def test_a_misspelt_option_is_refused_with_the_right_name_before_anything_is_opened() -> None:
    with pytest.raises(UnknownOption, match=r"unknown option 'prefil_chunk'; did you mean 'prefill_chunk'\?"):
        cmp_load(NOWHERE, LoadOptions(device="emulated", extra={"prefil_chunk": "8"}))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"precise": "yes"}, r"option precise expects one of 0, 1, got 'yes'; without it: 0"),
        ({"overlap": ""}, r"option overlap expects one of 0, 1, got ''; without it: 1"),
        ({"kv": "F16"}, r"option kv expects one of f16, f32, got 'F16'; did you mean 'f16'"),
        ({"decoder": "fast"}, r"option decoder expects one of graph, .*got 'fast'; without it: graph"),
        ({"gemm": "mma"}, r"option gemm expects one of auto, own, cublaslt, got 'mma'; without it: auto"),
        ({"ahead": "0"}, r"option ahead expects a whole number from 1 to 1024, got '0'; without it: 8"),
        ({"ahead": "-1"}, r"got '-1'"),
        ({"ahead": "1025"}, r"got '1025'"),
        ({"ahead": "2.0"}, r"got '2.0'"),
        ({"ahead": "9" * 40}, r"got '9+'"),
        ({"ahead": "²"}, r"got '²'"),
        ({"prefill_chunk": "8193"}, r"option prefill_chunk expects a whole number from 1 to 8192, got '8193'"),
    ],
)
def test_a_bad_value_is_refused(extra: Mapping[str, str], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        read_settings(LoadOptions(extra=extra))


def test_more_sequences_than_a_step_carries_are_refused() -> None:
    assert read_settings(LoadOptions(max_sequences=64)).ahead == 8
    with pytest.raises(EngineError, match=r"expected 1 to 64 sequences at once, got 65; choose .* 64 or less"):
        read_settings(LoadOptions(max_sequences=65))
