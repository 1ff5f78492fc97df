"""Names, paths and URIs; hashes that are remembered as long as the file is the same; exact siblings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from enginecmp.errors import ModelError, UsageError
from enginecmp.models.gguf_file import read_gguf
from enginecmp.models.info import sha256_of, shape_of
from enginecmp.models.store import cache_dir, derived, exact_sibling, pull, resolve
from enginecmp.models.synth import write_synth
from enginecmp.types import ModelInfo


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_synth(tmp_path / "mine.gguf", "tiny-qwen2", "Q8_0", seed=1)
    return tmp_path / "mine.gguf"


def test_path_gives_the_facts_of_the_file(path: Path) -> None:
    info = resolve(str(path))
    assert info.path == str(path)
    assert info.name == "mine"
    assert info.sha256 == sha256_of(path)
    assert (info.architecture, info.quantization, info.context_tokens) == ("qwen2", "Q8_0", 512)
    assert info.bytes == path.stat().st_size


def test_unchanged_file_is_not_hashed_again(path: Path, cache: Path) -> None:
    resolve(str(path))
    (sidecar,) = (cache / "known").glob("*.json")
    sidecar.write_bytes(sidecar.read_bytes().replace(sha256_of(path).encode(), b"remembered"))
    assert resolve(str(path)).sha256 == "remembered"


def test_changed_file_of_the_same_size_is_hashed_again(path: Path) -> None:
    before = resolve(str(path))
    status = path.stat()
    write_synth(path, "tiny-qwen2", "Q8_0", seed=2)
    assert path.stat().st_size == status.st_size
    assert resolve(str(path)).sha256 == sha256_of(path) != before.sha256


def test_damaged_sidecar_is_made_again(path: Path, cache: Path) -> None:
    before = resolve(str(path))
    (sidecar,) = (cache / "known").glob("*.json")
    sidecar.write_bytes(b'{"sha256":')
    assert resolve(str(path)) == before


def test_path_works_without_a_writable_cache(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "file"))
    assert resolve(str(path)).sha256 == sha256_of(path)


def test_missing_path_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        resolve(str(tmp_path / "absent.gguf"))


def test_unknown_name_is_a_usage_error_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'smollm2-135m-instruct'"):
        resolve("smolm2-135m-instruct", fetch=True)


def test_cache_is_in_the_users_cache_folder_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ENGINECMP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "enginecmp" / "models"


def test_exact_sibling_is_the_same_weights_in_f32_and_is_made_once(path: Path, cache: Path) -> None:
    model = resolve(str(path))
    sibling = exact_sibling(model)
    assert sibling.quantization == "F32"
    assert Path(sibling.path) == cache / "exact" / f"{model.sha256}.f32.gguf"
    ours, theirs = read_gguf(sibling.path), read_gguf(path)
    for name in theirs.tensors:
        np.testing.assert_array_equal(ours.float32(name), theirs.float32(name))
    made = Path(sibling.path).stat().st_mtime_ns
    assert exact_sibling(model) == sibling
    assert Path(sibling.path).stat().st_mtime_ns == made


def test_exact_sibling_of_an_f32_file_is_itself(tmp_path: Path) -> None:
    model = write_synth(tmp_path / "f32.gguf", "tiny-llama", "F32")
    assert exact_sibling(model) is model


def test_exact_sibling_that_memory_would_not_hold_is_refused(path: Path) -> None:
    model = msgspec.structs.replace(resolve(str(path)), parameters=10**15)
    with pytest.raises(ModelError, match=r"4000000.0 GB of free memory for its F32 file, got .*--no-gate"):
        exact_sibling(model)


def test_derived_file_that_was_damaged_is_made_again(path: Path, cache: Path) -> None:
    model = resolve(str(path))
    first = derived(model, "f16", cache / "mine.f16.gguf")
    Path(first.path).write_bytes(b"short")
    assert derived(model, "f16", cache / "mine.f16.gguf") == first
    assert resolve("mine:f16") == first


def test_url_is_refused_with_the_command_that_fetches_it() -> None:
    with pytest.raises(UsageError, match=r"got a URL; fetch .*: curl -LO 'https://example.org/x.gguf\?a=1&b=2'"):
        resolve("https://example.org/x.gguf?a=1&b=2", fetch=True)


def test_pulled_path_of_another_hash_is_refused(path: Path) -> None:
    assert pull(str(path), sha256=sha256_of(path).upper()).sha256 == sha256_of(path)
    with pytest.raises(ModelError, match=f"expected SHA-256 {'0' * 64}, the file .* has {sha256_of(path)}"):
        pull(str(path), sha256="0" * 64)


@pytest.mark.parametrize("uri", ["hf:x.gguf", "hf:owner", "hf:owner/repo/file.bin", "hf://file.gguf"])
def test_malformed_hub_uri_is_a_usage_error(uri: str) -> None:
    with pytest.raises(UsageError, match="expected hf:OWNER/REPO/FILE"):
        resolve(uri, fetch=True)


def test_machine_without_the_hub_gets_one_line(tmp_path: Path) -> None:
    """The client reads its settings at import, so it gets a process of its own."""
    code = (
        "from enginecmp.models.store import resolve; from enginecmp.errors import ModelError\n"
        "try: resolve('hf:owner/repo/file.gguf@main', fetch=True)\n"
        "except ModelError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.startswith("hf:owner/repo/file.gguf@main: expected the file from the hub, got: ")


def test_kv_cache_per_token_counts_keys_and_values_of_all_layers(path: Path) -> None:
    shape = shape_of(read_gguf(path))
    assert shape.kv_bytes_per_token() == 2 * 2 * (16 + 16) * 2  # layers, kv heads, key + value, bytes of F16
    assert shape.kv_bytes_per_token(4) == 512


def test_model_info_survives_the_sidecar(path: Path) -> None:
    assert isinstance(resolve(str(path)), ModelInfo)
    assert resolve(str(path)) == resolve(str(path))
