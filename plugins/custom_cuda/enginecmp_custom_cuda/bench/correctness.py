"""The part "correctness": the plugin's own tests on this device, files side by side, the most telling first.

A test that fails is a wrong answer, with its name; one that there was no time for is left out, and counted. The tests
are those of the checkout around this package, with their oracles.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .context import Context
from .measurement import Measurement

TESTS = Path(__file__).resolve().parents[2] / "tests"

FILES = (
    *("device", "decode_kernels", "prefill_gemm", "prefill_attention", "split_attention", "decode", "persistent"),
    *("prefill", "session", "cublaslt", "sampling", "requests", "batching", "ahead", "weights", "oracle_engine"),
)
"""Test files by what would be learnt first: single kernels, then steps and prompts, then whole sessions."""

DRY_FILES = ("split_attention",)
SIDE_BY_SIDE = 4
LEAST_SECONDS = 3.0

RESULT = re.compile(r"^(\S+::\S+) (PASSED|FAILED|ERROR|SKIPPED)", re.MULTILINE)
FAILED = {"FAILED", "ERROR"}


def run(context: Context) -> None:
    """Run the files while there is time; write down what each found."""
    if not TESTS.is_dir():
        context.note(f"the tests: expected {TESTS}, got no folder; start bench_gpu.py of a checkout")
        return
    files = DRY_FILES if context.dry else FILES
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for file, (found, ended) in zip(files, pool.map(lambda file: outcome(context, file), files), strict=True):
            for one in measurements(file, found):
                context.measured(one)
            if not ended:
                context.note(f"{file}: ended after {len(found)} tests")


def measurements(file: str, found: dict[str, str]) -> Iterator[Measurement]:
    """Yield how many tests of a file passed, and each that did not."""
    passed = sum(result == "PASSED" for result in found.values())
    if passed:
        yield Measurement("tests", {"file": file, "passed": passed}, (), True)
    for test, result in found.items():
        if result in FAILED:
            yield Measurement("test", {"file": file, "id": test.partition("::")[2]}, (), False)


def outcome(context: Context, file: str) -> tuple[dict[str, str], bool]:
    """Return what became of a file's tests until the time was over, and whether all had their turn."""
    if context.left() < LEAST_SECONDS:
        return {}, False
    command = command_of([str(TESTS / f"test_custom_cuda_{file}.py")])
    environment = {**os.environ, "ENGINECMP_TEST_DEVICE": "cuda" if context.device_kind == "cuda" else ""}
    # In this part's group of processes: what is left of it ends with the part.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=TESTS.parents[2],
    )
    timer = threading.Timer(max(0.0, context.left() - 1), process.kill)
    timer.start()
    printed, _ = process.communicate()
    timer.cancel()
    print(f"# {file}, {time.strftime('%H:%M:%S')}\n{printed}", flush=True)
    # 1: some failed; below 0: killed.
    if process.returncode not in (0, 1) and process.returncode >= 0:
        context.failed(f"{file}: pytest ended with {process.returncode}: {(printed.splitlines() or [''])[-1][:200]}")
    return dict(RESULT.findall(printed)), process.returncode in (0, 1)


def command_of(tests: list[str]) -> list[str]:
    """Return the command that runs tests and tells of each."""
    plain = ["-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=short", "-v", "-o", "addopts="]
    return [sys.executable, "-m", "pytest", *plain, *tests]
