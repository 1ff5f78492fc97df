"""How to start each engine's bare loop: its own code without Python's hooks, a worker or a host.

Every loop loads the model, then answers each line of stdin with one request: see `bench.in_turn.bare`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.llama_bench import cache_folder
from enginecmp.errors import CmpError
from enginecmp.types import ModelInfo

PLUGINS = Path(__file__).parents[1] / "plugins"


@contextmanager
def command_of(
    engine: str, model: ModelInfo, prompt: Sequence[int], n_tokens: int, threads: int
) -> Iterator[list[str]]:
    """Make ready what an engine's loop needs and return its command line; files of it live as long as the context.

    Args:
        engine: candle, custom_cpu, burn or pytorch_baseline.
        model: the file.
        prompt: token ids of every request.
        n_tokens: tokens to generate, the first included.
        threads: of the engine; Rust reads them from the engine's environment.

    Raises:
        CmpError: see `build_example`.
    """
    request = [str(n_tokens), *map(str, prompt)]
    if engine == "pytorch_baseline":
        yield [sys.executable, "-m", "bench.bare_loop", model.path, str(threads), *request]
    elif engine == "burn":
        from bench.burn_model import write_model

        loop = build_example(PLUGINS / "burn")
        with TemporaryDirectory(prefix="cmp-bench-") as folder:
            write_model(model.path, Path(folder), len(prompt) + n_tokens)
            yield [os.fspath(loop), folder, *request]
    else:
        yield [os.fspath(build_example(PLUGINS / engine)), model.path, *request]


def build_example(crate: Path, example: str = "bare_loop") -> Path:
    """Return the path of one of a crate's examples, compiled where it is out of date.

    It takes minutes when nothing of the engine is compiled. The profile is that of the extension, so both sides of a
    comparison run the same machine code.

    Raises:
        CmpError: there is no cargo, or it fails.
    """
    if shutil.which("cargo") is None:
        msg = f"{crate.name}'s {example}: expected cargo, found none; install Rust"
        raise CmpError(msg)
    # Where make keeps it, too.
    environment = {"CARGO_TARGET_DIR": os.fspath(cache_folder().parent / "cargo"), **os.environ}
    command = ["cargo", "build", "--release", "--locked", "--example", example, "--message-format=json"]
    # In the crate's folder, so that its .cargo/config.toml counts.
    done = subprocess.run(command, cwd=crate, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        said = lines[-1] if lines else "it gave no reason"
        msg = f"{crate.name}'s {example}: cargo fails: {said}; run {' '.join(command[:6])} in {crate}"
        raise CmpError(msg)
    messages = map(json.loads, done.stdout.splitlines())
    return next(Path(message["executable"]) for message in messages if message.get("executable"))
