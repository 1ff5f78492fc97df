"""Facts, probe and options: nothing native is imported for them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points, version
from typing import Any

import msgspec
import pytest

from enginecmp import EngineError, LoadOptions, ModelError, ModelInfo, UnknownOption
from enginecmp.plugins.manager import load_object, manager_with
from enginecmp_mistralrs import cmp_engine, cmp_load, cmp_probe, facts

THREADS = {"CANDLE_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that agrees with one thread and asks for no KV type."""
    for name, value in THREADS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MISTRALRS_CPU_KV_F32", raising=False)
    return monkeypatch


def test_the_entry_point_brings_hooks_that_all_exist() -> None:
    (entry,) = entry_points(group="enginecmp", name="mistralrs")
    hook = manager_with(load_object(entry.value)).hook
    (info,) = hook.cmp_engine()
    assert info.name == "mistralrs"
    assert info.version == version("mistralrs")
    for name in ("cmp_prepare", "cmp_prefill", "cmp_decode", "cmp_score", "cmp_reset", "cmp_probe"):
        assert getattr(hook, name).get_hookimpls(), name


def test_one_request_at_a_time_and_no_batching_hook() -> None:
    hook = manager_with(load_object("enginecmp_mistralrs")).hook
    assert cmp_engine().max_concurrency == 1
    assert not hook.cmp_submit.get_hookimpls()


def test_registering_and_probing_import_nothing_native(scenario: Callable[..., Any]) -> None:
    assert scenario("discovery") == []


def test_probe_refuses_cuda_on_the_cpu_wheel_and_gives_the_install_line() -> None:
    if "+cuda" in version("mistralrs"):
        pytest.skip("the installed wheel is a CUDA wheel")
    found = cmp_probe(LoadOptions(device="cuda"))
    assert not found.ok
    assert "CPU wheel" in found.reason
    assert f"mistralrs=={version('mistralrs')}+cuda" in found.fix
    assert "--find-links" in found.fix


def test_probe_of_a_cuda_wheel_without_a_device_warns_of_the_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    # A CUDA wheel cannot be installed beside the CPU wheel: only its version is put in place.
    monkeypatch.setattr(facts, "installed_version", lambda: "0.9.5+cuda130.sm90")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    found = cmp_probe(LoadOptions(device="cuda"))
    assert not found.ok
    assert "silently" in found.reason


def test_probe_of_a_cuda_wheel_refuses_the_cpu_unless_devices_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "installed_version", lambda: "0.9.5+cuda130.sm90")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "CUDA_VISIBLE_DEVICES=" in cmp_probe(LoadOptions(device="cpu")).fix
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cmp_probe(LoadOptions(device="cpu")).ok


def test_probe_without_the_wheel_gives_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "installed_version", lambda: "")
    found = cmp_probe(LoadOptions())
    assert not found.ok
    assert found.fix == "pip install 'mistralrs>=0.9.5'"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"dtyp": "f32"}, "mistralrs: no option 'dtyp' on device cpu; did you mean 'dtype'?"),
        (
            {"dtype": "f23"},
            "mistralrs: option dtype expects one of auto, f32, f16, bf16, got 'f23'; did you mean 'f32'?",
        ),
        ({"paged_attn": "off"}, "mistralrs: no option 'paged_attn' on device cpu (on cuda only)"),
        ({"prefix_cache_n": "16"}, "mistralrs: no option 'prefix_cache_n' on device cpu; known: dtype, kv"),
    ],
)
def test_an_unknown_option_names_the_nearest(
    tiny: Callable[..., ModelInfo], extra: dict[str, str], message: str
) -> None:
    with pytest.raises(UnknownOption) as raised:
        cmp_load(tiny(), LoadOptions(extra=extra))
    assert str(raised.value) == message


@pytest.mark.parametrize("name", list(THREADS))
@pytest.mark.parametrize("found", ["2", None])
def test_an_environment_for_other_threads_is_refused_with_the_fix(
    one_thread: pytest.MonkeyPatch, tiny: Callable[..., ModelInfo], name: str, found: str | None
) -> None:
    if found is None:
        one_thread.delenv(name)
    else:
        one_thread.setenv(name, found)
    with pytest.raises(EngineError) as raised:
        cmp_load(tiny(), LoadOptions(threads=1))
    assert f"{name}={found or '(unset)'}" in str(raised.value)
    assert str(raised.value).endswith("start Python with CANDLE_NUM_THREADS=1 RAYON_NUM_THREADS=1")


def test_a_float32_cache_that_nobody_declared_is_refused(
    one_thread: pytest.MonkeyPatch, tiny: Callable[..., ModelInfo]
) -> None:
    one_thread.setenv("MISTRALRS_CPU_KV_F32", "1")
    with pytest.raises(EngineError, match=r"unset it, or say so with -o mistralrs\.kv=f32"):
        cmp_load(tiny(), LoadOptions(numerics="default"))


def test_a_missing_file_is_named(one_thread: pytest.MonkeyPatch, tiny: Callable[..., ModelInfo]) -> None:
    model = msgspec.structs.replace(tiny(), path="/nowhere/model.gguf")
    with pytest.raises(ModelError, match=r"expected a GGUF file at /nowhere/model\.gguf"):
        cmp_load(model, LoadOptions())
