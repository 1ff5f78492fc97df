"""What the plugin says of itself, what may be set, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enginecmp import EngineError, LoadOptions, ModelInfo, UnknownOption, UnsupportedModel
from enginecmp_llamacpp import cmp_engine, cmp_load, cmp_probe
from enginecmp_llamacpp.library import library_folder

LOAD = """
import sys
import msgspec
from enginecmp import LoadOptions, ModelInfo
from enginecmp_llamacpp import cmp_load, cmp_prefill, cmp_unload
model = msgspec.json.decode(sys.argv[1], type=ModelInfo)
session = cmp_load(model=model, options=LoadOptions(context_tokens=64, extra={"verbose": sys.argv[2]}))
cmp_prefill(session=session, token_ids=[1, 2, 3], output_tokens=1)
cmp_unload(session=session)
"""


def test_discovery_and_the_cpu_probe_load_nothing_native() -> None:
    code = (
        "import sys, enginecmp_llamacpp as plugin; from enginecmp import LoadOptions;"
        "plugin.cmp_engine(); assert plugin.cmp_probe(LoadOptions()).ok;"
        "print(*{'numpy', 'llama_cpp'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_facts_agree_with_the_installed_library() -> None:
    from enginecmp_llamacpp.native import lib

    info = cmp_engine()
    assert info.version == sys.modules["llama_cpp"].__version__
    assert info.max_concurrency == lib.llama_max_parallel_sequences()
    assert info.environment == {"OMP_NUM_THREADS": "{threads}"}


def test_every_named_quantization_is_a_type_of_the_library() -> None:
    import gguf

    assert set(cmp_engine().quantizations) <= {kind.name for kind in gguf.GGMLQuantizationType}


def test_every_named_architecture_is_known_to_the_library() -> None:
    # llama.cpp keeps the names as text in its library; what it does not know it cannot name.
    folder = library_folder()
    assert folder is not None
    library = next(folder.glob("libllama.so")).read_bytes()
    assert [name for name in cmp_engine().architectures if name.encode() + b"\0" not in library] == []


def test_probe_names_the_build_command_where_cuda_is_missing() -> None:
    folder = library_folder()
    assert folder is not None
    if any(folder.glob("libggml-cuda.*")):
        pytest.skip("this llama-cpp-python has CUDA")
    probe = cmp_probe(LoadOptions(device="cuda"))
    assert not probe.ok
    assert probe.reason == "llama-cpp-python was built without CUDA"
    assert 'CMAKE_ARGS="-DGGML_CUDA=on" pip install' in probe.fix


def test_probe_refuses_other_devices() -> None:
    assert cmp_probe(LoadOptions(device="metal")).reason == "runs on cpu and cuda, not on metal"


def test_probe_notices_a_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The variable is llama-cpp-python's own.
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    probe = cmp_probe(LoadOptions())
    assert not probe.ok
    assert str(tmp_path) in probe.reason
    assert probe.fix == "pip install llama-cpp-python"


def test_a_misspelt_option_is_refused_with_the_right_name(tiny: ModelInfo) -> None:
    with pytest.raises(UnknownOption, match=r"unknown option 'n_bacth'; did you mean 'n_batch'\?"):
        cmp_load(tiny, LoadOptions(extra={"n_bacth": "8"}))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"n_batch": "0"}, r"option n_batch expects a whole number >= 1, got '0'"),
        ({"n_batch": "many"}, r"option n_batch expects a whole number >= 1, got 'many'"),
        ({"n_batch": "99999999999"}, r"option n_batch expects a whole number >= 1, got '99999999999'"),
        ({"n_ubatch": "1.5"}, r"option n_ubatch expects a whole number >= 1, got '1.5'"),
        ({"n_batch": "8", "n_ubatch": "16"}, r"expected n_ubatch <= n_batch \(8\), got 16"),
        ({"kv_type": "F16"}, r"option kv_type expects one of f32, f16, .*, got 'F16'"),
        ({"kv_type": "q8_0", "flash_attn": "off"}, r"kv_type=q8_0 needs flash attention"),
        ({"flash_attn": "yes"}, r"option flash_attn expects one of auto, on, off, got 'yes'"),
        ({"n_gpu_layers": "-2"}, r"option n_gpu_layers expects a whole number >= -1"),
        ({"n_gpu_layers": "4"}, r"n_gpu_layers=4 needs a GPU, the device is cpu; pass --device cuda"),
        ({"repack": "true"}, r"option repack expects one of 0, 1, got 'true'"),
        ({"verbose": ""}, r"option verbose expects one of 0, 1, got ''"),
    ],
)
def test_a_bad_value_is_refused(extra: Mapping[str, str], said: str, tiny: ModelInfo) -> None:
    with pytest.raises(EngineError, match=said):
        cmp_load(tiny, LoadOptions(context_tokens=64, extra=extra))


def test_more_sequences_than_a_batch_has_tokens_are_refused(tiny: ModelInfo) -> None:
    with pytest.raises(EngineError, match=r"pass -o llamacpp\.n_batch=9 or more"):
        cmp_load(tiny, LoadOptions(context_tokens=64, max_sequences=9, extra={"n_batch": "8"}))


@pytest.mark.parametrize(
    "extra",
    [
        {"flash_attn": "on"},
        {"flash_attn": "off", "kv_type": "bf16"},
        {"repack": "0"},
        {"n_batch": "8", "n_ubatch": "4"},
    ],
)
def test_options_that_change_only_the_way_leave_the_tokens_alone(
    extra: Mapping[str, str], tiny: ModelInfo, load: Any, token_ids: list[int]
) -> None:
    from enginecmp_llamacpp import cmp_decode, cmp_prefill

    plain, changed = load(tiny, numerics="default"), load(tiny, numerics="default", extra=extra)
    answers = [[cmp_prefill(s, token_ids, 6), *cmp_decode(s, 5)] for s in (plain, changed)]
    assert answers[0] == answers[1]


def test_a_kv_type_that_does_not_fit_the_heads_is_an_error_with_the_librarys_reason(
    tiny: ModelInfo, capfd: pytest.CaptureFixture[str]
) -> None:
    # Blocks of q8_0 have 32 elements, the tiny model's heads 16.
    with pytest.raises(EngineError, match=r"K cache type q8_0 with block size 32 does not divide n_embd_head_k=16"):
        cmp_load(tiny, LoadOptions(context_tokens=64, extra={"kv_type": "q8_0"}))
    capfd.readouterr()


def test_an_architecture_that_the_library_does_not_know_is_an_error(
    tiny: ModelInfo, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.gguf"
    # The first "llama" of the file is the value of general.architecture.
    path.write_bytes(Path(tiny.path).read_bytes().replace(b"llama", b"zlama", 1))
    model = msgspec.structs.replace(tiny, name="other", path=str(path), architecture="zlama")
    with pytest.raises(UnsupportedModel, match=r"other is refused: .*unknown model architecture: 'zlama'"):
        cmp_load(model, LoadOptions(context_tokens=64))
    assert "zlama" in capfd.readouterr().err


@pytest.mark.parametrize("kept", [0, 100, 5_000, -1000])
def test_a_cut_file_is_an_error_not_a_crash(
    kept: int, tiny: ModelInfo, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(Path(tiny.path).read_bytes()[:kept])
    with pytest.raises(UnsupportedModel, match=r"is refused: \w"):
        cmp_load(msgspec.structs.replace(tiny, path=str(path)), LoadOptions(context_tokens=64))
    capfd.readouterr()


@pytest.mark.parametrize("verbose", ["0", "1"])
def test_the_librarys_log_goes_to_stderr_and_only_when_asked_for(verbose: str, tiny: ModelInfo) -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-c", LOAD, msgspec.json.encode(tiny).decode(), verbose],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == ""
    assert ("llama_context: n_ctx" in result.stderr) == (verbose == "1")
    assert bool(result.stderr) == (verbose == "1")
