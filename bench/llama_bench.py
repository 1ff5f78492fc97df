"""llama.cpp's own benchmark, built against the very library files that the llamacpp engine loads.

`llama-bench` is not in the Python package. Its two source files are in the package's source distribution, and the
shared libraries that they need are installed with it: so only those two files are compiled, and both sides of the
fidelity comparison run the same machine code.

`python -m bench.llama_bench` builds it and prints where it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from enginecmp.errors import CmpError

DISTRIBUTION = "llama-cpp-python"
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
LIBRARIES = ("llama", "ggml", "ggml-base")
COMMON = "llama-common"  # what llama-bench shares with llama.cpp's other programs
NEEDED = ("vendor/llama.cpp/common/", "vendor/llama.cpp/tools/llama-bench/")


def cache_folder() -> Path:
    """Return where the binary is kept: under ENGINECMP_CACHE, else the user's cache folder."""
    if override := os.environ.get("ENGINECMP_CACHE"):
        return Path(override).absolute() / "bench"
    import platformdirs

    return Path(platformdirs.user_cache_dir("enginecmp")) / "bench"


def build() -> Path:
    """Return the path of `llama-bench`, compiled on the first call (about a minute).

    Raises:
        CmpError: the package is not installed, was not built from its sources, or the compiler fails.
    """
    try:
        installed = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        msg = f"llama-bench: expected {DISTRIBUTION} installed, it is not; run make setup"
        raise CmpError(msg) from error
    site = Path(str(installed.locate_file("")))
    # The engine loads these; the other folder holds copies and, only there, llama-common.
    folders = [site / "llama_cpp" / "lib", site / "lib"]
    missing = [name for name in LIBRARIES if not (folders[0] / f"lib{name}.so").exists()]
    if missing or not (folders[1] / f"lib{COMMON}.so").exists():
        msg = (
            f"llama-bench: expected {', '.join((*LIBRARIES, COMMON))} in {folders[0]} and {folders[1]}; "
            f"install {DISTRIBUTION} from its source distribution"
        )
        raise CmpError(msg)
    content = (folders[0] / "libllama.so").read_bytes()
    key = hashlib.sha256(content + os.fsencode(site)).hexdigest()[:12]
    binary = cache_folder() / f"llama-bench-{installed.version}-{key}"
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=binary.parent) as folder:
            sources = _sources(installed.version, Path(folder))
            built = Path(folder) / "llama-bench"
            _compile(sources, site / "include", folders, built)
            _check(built, folders)
            built.replace(binary)
    return binary


def run_llama_bench(
    binary: Path,
    model_path: Path | str,
    *,
    threads: int,
    n_gen: int,
    n_prompt: int = 0,
    depth: int = 0,
    repetitions: int = 5,
    options: Sequence[str] = (),
    environment: Mapping[str, str] = {},
) -> list[dict[str, Any]]:
    """Run `llama-bench` once and return its results as it reports them.

    It warms up by one run, then times `repetitions` of each test: a prompt of `n_prompt` tokens, then `n_gen`
    single tokens, both after `depth` tokens that are not timed. It does not choose tokens: they are random.

    Args:
        binary: from `build`.
        model_path: the GGUF file.
        threads: for both tests; OMP_NUM_THREADS is set to the same, as for the engine.
        n_gen: tokens to generate one by one; 0 leaves the test out.
        n_prompt: tokens of one prompt; 0 leaves the test out.
        depth: tokens in the cache beforehand.
        repetitions: timed runs of each test.
        options: more of its command line, e.g. ("-fa", "0").
        environment: variables to add.

    Returns:
        One dict a test; `n_prompt`, `n_gen`, `n_depth` say which, `samples_ts` are its tokens per second, one
        per repetition, `samples_ns` the times behind them.

    Raises:
        CmpError: it fails.
    """
    command = [os.fspath(binary), "-m", os.fspath(model_path), "-t", str(threads), "-p", str(n_prompt)]
    command += ["-n", str(n_gen), "-d", str(depth), "-r", str(repetitions), "-o", "json", *options]
    result = _run(command, {**os.environ, "OMP_NUM_THREADS": str(threads), **environment})
    found: list[dict[str, Any]] = json.loads(result)
    return found


def _sources(version: str, folder: Path) -> Path:
    """Download the source distribution, unpack what is needed and return llama.cpp's folder.

    The file must have the hash that constraints.txt pins, where that pins this version.
    """
    pinned = CONSTRAINTS.read_text() if CONSTRAINTS.exists() else ""
    _, found, rest = pinned.partition(f"{DISTRIBUTION}=={version} \\\n")
    hashes = []
    for line in rest.splitlines() if found else []:
        if not line.startswith(" "):
            break
        hashes.append(line.strip(" \\"))
    requirement = folder / "requirement.txt"
    requirement.write_text(" ".join([f"{DISTRIBUTION}=={version}", *hashes]))
    # Not downloaded twice: pip keeps it from the installation, where it has a cache.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*command, "--no-binary", ":all:", "--dest", os.fspath(folder), "--requirement", os.fspath(requirement)])
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as file:
        members = [member for member in file if member.name.partition("/")[2].startswith(NEEDED)]
        file.extractall(folder, members, filter="data")
    return next(folder.glob("*/vendor/llama.cpp"))


def _compile(sources: Path, include: Path, folders: Sequence[Path], binary: Path) -> None:
    """Compile llama-bench as its own build does in release mode, linked to the installed libraries.

    An RPATH, not a RUNPATH: it also decides where the libraries find each other.
    """
    tool = sources / "tools" / "llama-bench"
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O3", "-DNDEBUG", "-pthread"]
    command += [f"-I{include}", f"-I{sources / 'common'}", *map(str, sorted(tool.glob("*.cpp")))]
    command += [f"-L{folder}" for folder in folders]
    command += [f"-l{name}" for name in (COMMON, *LIBRARIES)]
    command += ["-Wl,--disable-new-dtags", f"-Wl,-rpath,{':'.join(map(str, folders))}", "-o", str(binary)]
    _run(command)


def _check(binary: Path, folders: Sequence[Path]) -> None:
    """Make sure that the binary starts and takes llama.cpp from the engine's folder.

    Raises:
        CmpError: it does not.
    """
    _run([os.fspath(binary), "--help"])
    lines = [line.split() for line in _run(["ldd", os.fspath(binary)]).splitlines()]
    used = [Path(line[2]) for line in lines if line[1:2] == ["=>"] and line[0].startswith(("libllama.", "libggml"))]
    if not used or any(path.parent != folders[0] for path in used):
        msg = f"llama-bench: expected its libraries from {folders[0]}, got {', '.join(map(str, used)) or 'none'}"
        raise CmpError(msg)


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command and return what it prints.

    Raises:
        CmpError: it cannot be started or fails; with the last lines it wrote.
    """
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except OSError as error:
        msg = f"llama-bench: expected to run {command[0]}: {error}; install it"
        raise CmpError(msg) from error
    if result.returncode != 0:
        tail = " / ".join((result.stderr or result.stdout).strip().splitlines()[-3:])
        msg = f"llama-bench: {command[0]} ended with code {result.returncode}: {tail}"
        raise CmpError(msg)
    return result.stdout


if __name__ == "__main__":
    print(build())
