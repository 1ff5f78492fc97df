"""Options, refusals and what is known before anything is loaded."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import enginecmp_pytorch_baseline
from enginecmp import EngineError, LoadOptions, UnknownOption, UnsupportedModel
from enginecmp.plugins.manager import manager_with
from enginecmp.testing.tiny_models import changed_model
from enginecmp_pytorch_baseline import cmp_decode, cmp_engine, cmp_metrics, cmp_prefill, cmp_probe, cmp_score

IDS = list(range(3, 40))


def run_python(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_discovery_and_cpu_probe_import_neither_torch_nor_numpy() -> None:
    run_python(
        "import sys, enginecmp_pytorch_baseline as plugin\n"
        "from enginecmp import LoadOptions\n"
        "assert plugin.cmp_engine().name == 'pytorch_baseline'\n"
        "assert plugin.cmp_probe(LoadOptions()).ok\n"
        "loaded = {'torch', 'numpy', 'gguf'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )


def test_every_hook_is_one_the_host_knows() -> None:
    hook = manager_with(enginecmp_pytorch_baseline).hook
    (info,) = hook.cmp_engine()
    assert info == cmp_engine()
    implemented = {name for name in dir(hook) if name.startswith("cmp_") and getattr(hook, name).get_hookimpls()}
    assert implemented == set(enginecmp_pytorch_baseline.__all__)


def test_version_is_the_one_of_the_torch_that_runs() -> None:
    import torch

    assert torch.__version__.split("+")[0] == cmp_engine().version.split("+")[0]


def test_probe_of_an_unknown_device_says_which_there_are() -> None:
    probe = cmp_probe(LoadOptions(device="metal"))
    assert not probe.ok
    assert "cpu, cuda" in probe.reason


def test_probe_and_load_agree_on_whether_cuda_is_here(tiny: Any, load: Any) -> None:
    import torch

    probe = cmp_probe(LoadOptions(device="cuda"))
    assert probe.ok == torch.cuda.is_available()
    if probe.ok:
        load(tiny("llama"), device="cuda")
        return
    assert probe.fix == "run with --device cpu"
    with pytest.raises(EngineError, match=r"expected a CUDA device.*pass --device cpu"):
        load(tiny("llama"), device="cuda")


def test_probe_without_torch_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cmp_probe(LoadOptions()).fix == "pip install torch"


@pytest.mark.parametrize(
    ("extra", "hint"),
    [({"dtpye": "float32"}, "did you mean 'dtype'?"), ({"dtype": "bfloat"}, "did you mean 'bfloat16'?")],
)
def test_an_unknown_option_or_value_is_refused_with_the_nearest_one(
    extra: dict[str, str], hint: str, tiny: Any, load: Any
) -> None:
    with pytest.raises(UnknownOption, match=re.escape(hint)):
        load(tiny("llama"), extra=extra)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_takes_half_the_memory_and_stays_near(dtype: str, tiny: Any, load: Any, kl: Any) -> None:
    session = load(tiny("llama"), numerics="default", extra={"dtype": dtype})
    cmp_prefill(session, IDS, 3)
    assert len(list(cmp_decode(session, 2))) == 2
    metrics = cmp_metrics(session)
    assert metrics["weights_bytes"] == 2 * tiny("llama").parameters
    assert metrics["kv_cache_bytes"] == 2 * (2 * 2 * 2 * 16) * (len(IDS) + 2)
    scores = cmp_score(session, IDS)
    assert scores.dtype == np.float32
    assert 1e-8 < kl(cmp_score(load(tiny("llama")), IDS), scores).mean() < 2e-2


def test_exact_numerics_override_a_lower_precision(tiny: Any, load: Any) -> None:
    exact = load(tiny("llama"), numerics="exact", extra={"dtype": "bfloat16"})
    default = load(tiny("llama"), numerics="default")
    assert (cmp_score(exact, IDS) == cmp_score(default, IDS)).all()


def test_load_sets_threads_and_full_float32_precision(tiny: Any, load: Any) -> None:
    import torch

    torch.set_float32_matmul_precision("high")
    before = torch.get_num_threads()
    try:
        load(tiny("llama"), threads=2)
        assert torch.get_num_threads() == 2
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_num_threads(before)


def test_an_unknown_device_is_refused(tiny: Any, load: Any) -> None:
    with pytest.raises(EngineError, match="expected a device among cpu, cuda, got 'metal'"):
        load(tiny("llama"), device="metal")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"general.architecture": ("STRING", "mamba"), "mamba.context_length": ("UINT32", 256)},
            "llama, qwen2, phi3, gpt2, llada, dream, got 'mamba'",
        ),
        ({"llama.rope.scaling.type": ("STRING", "yarn")}, "none, linear or longrope, got 'yarn'"),
        ({"llama.rope.scaling.type": ("STRING", "longrope")}, "rope_factors_long.weight and rope_factors_short.weight"),
        ({"llama.rope.scaling.yarn_beta_fast": ("FLOAT32", 32.0)}, "got llama.rope.scaling.yarn_beta_fast = 32.0"),
        ({"llama.expert_count": ("UINT32", 8)}, "got llama.expert_count = 8"),
        ({"llama.attention.causal": ("BOOL", False)}, "expected causal attention"),
        ({"llama.attention.value_length": ("UINT32", 8)}, "value_length to equal key_length"),
        ({"llama.attention.head_count_kv": ("UINT32", [2, 4])}, "expected one llama.attention.head_count_kv"),
        ({"llama.attention.head_count": ("STRING", "four")}, "positive whole number in llama.attention.head_count"),
        ({"llama.attention.head_count": ("UINT32", 0)}, "positive whole number in llama.attention.head_count"),
        ({"llama.attention.layer_norm_rms_epsilon": ("STRING", "x")}, "expected a number in"),
        ({"llama.rope.freq_base": ("FLOAT32", 0.0)}, "expected a number above 0 in llama.rope.freq_base, got 0.0"),
        ({"llama.rope.dimension_count": ("UINT32", 18)}, "expected an even rope.dimension_count up to 16, got 18"),
        ({"llama.embedding_length": ("UINT32", 96)}, "expected token_embd.weight of shape (314, 96)"),
        ({"llama.block_count": ("UINT32", 3)}, "got no blk.2.attn_norm.weight"),
    ],
)
def test_metadata_that_is_not_implemented_is_refused_not_guessed(
    fields: dict[str, Any], expected: str, tiny: Any, load: Any
) -> None:
    with pytest.raises(UnsupportedModel, match=re.escape(expected)):
        load(changed_model(tiny("llama"), fields))


def test_metadata_that_asks_for_nothing_is_no_reason_to_refuse(tiny: Any, load: Any) -> None:
    fields = {"llama.expert_count": ("UINT32", 0), "llama.attention.head_count_kv": ("UINT32", [2, 2])}
    assert (cmp_score(load(changed_model(tiny("llama"), fields)), IDS) == cmp_score(load(tiny("llama")), IDS)).all()


@pytest.mark.parametrize(
    ("architecture", "name", "shape"),
    [
        ("llama", "blk.0.attn_q_norm.weight", (16,)),
        ("qwen2", "rope_freqs.weight", (8,)),
        ("phi3", "blk.1.ffn_gate.weight", (128, 64)),
    ],
)
def test_a_tensor_that_would_go_unused_is_refused(
    architecture: str, name: str, shape: tuple[int, ...], tiny: Any, load: Any
) -> None:
    with pytest.raises(UnsupportedModel, match=f"also {re.escape(name)}"):
        load(changed_model(tiny(architecture), tensors={name: np.ones(shape, np.float32)}))


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.ffn_down.weight", "output_norm.weight"])
def test_a_missing_tensor_is_named(name: str, tiny: Any, load: Any) -> None:
    with pytest.raises(UnsupportedModel, match=re.escape(name)):
        load(changed_model(tiny("llama"), without={name}))


def test_missing_metadata_is_named(tiny: Any, load: Any) -> None:
    with pytest.raises(UnsupportedModel, match=r"expected metadata llama\.block_count, got none"):
        load(changed_model(tiny("llama"), without={"llama.block_count"}))


@pytest.mark.parametrize("kept", ["rope_factors_long.weight", "rope_factors_short.weight"])
def test_longrope_with_only_one_set_of_factors_is_refused(kept: str, tiny: Any, load: Any) -> None:
    with pytest.raises(UnsupportedModel, match=f"got only {re.escape(kept)}"):
        load(changed_model(tiny("phi3"), tensors={kept: np.ones(8, np.float32)}))


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "gpt2"])
def test_cuda_computes_what_the_cpu_computes_and_reports_device_times(
    architecture: str, tiny: Any, load: Any, kl: Any
) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device, or a torch without CUDA")
    model = tiny(architecture)
    cpu, cuda = load(model), load(model, device="cuda")
    assert kl(cmp_score(cpu, IDS), cmp_score(cuda, IDS)).mean() < 1e-8
    generated = [[cmp_prefill(session, IDS, 8), *cmp_decode(session, 7)] for session in (cpu, cuda)]
    assert generated[0] == generated[1]
    metrics = cmp_metrics(cuda)
    assert metrics["device_prefill_seconds"] > 0
    assert metrics["device_decode_seconds"] > 0
    assert metrics["weights_bytes"] == 4 * model.parameters
