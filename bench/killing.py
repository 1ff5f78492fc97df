"""kill -9 of the host at random moments: nothing finished is lost, the run can be finished, nobody is orphaned."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import psutil

from enginecmp.format.readers import read_manifest
from enginecmp.format.records import Sample
from enginecmp.models.synth import write_synth

CMP = os.path.join(os.path.dirname(sys.executable), "cmp")
ENVIRONMENT = {**os.environ, "CMP_PLUGINS": "enginecmp.testing.fake_engine"}
MOMENTS = 20
SCENARIO = """
name = "killed"
primary_metric = "throughput_tokens_per_second"
[[cells]]
prompt_tokens = 8
output_tokens = 8
[profile.full]
blocks = 3
requests = 5
[validity]
floor_seconds = 1000
"""


def measure() -> dict[str, Any]:
    """Kill a run of two engines (one fake on a real clock, one llama.cpp) at random moments, and finish it."""
    generator = random.Random(20)
    failures: list[str] = []
    whole = _seconds_of_a_run()
    moments = [generator.uniform(0.05, 0.95) * whole for _ in range(MOMENTS)]
    phases: Counter[str] = Counter()
    for number, moment in enumerate(moments):
        with TemporaryDirectory(prefix="cmp-bench-") as folder:
            found, phase = _kill_once(Path(folder), moment)
        phases[phase] += 1
        failures += [f"moment {number} ({moment:.2f} s): {failure}" for failure in found]
    print(f"{MOMENTS} kills ({', '.join(f'{count} {phase}' for phase, count in phases.items())})")
    for failure in failures:
        print(failure)
    return {
        "target": "every finished request on disk, every run resumable, no orphan",
        "met": not failures,
        "moments_seconds": moments,
        "phases": dict(phases),
        "failures": failures,
    }


def _prepare(folder: Path) -> tuple[list[str], str]:
    """Write model and scenario; return the command of the run and the model's path."""
    model = write_synth(folder / "tiny.gguf", like="tiny-llama", quantization="F32", seed=0)
    (folder / "killed.toml").write_text(SCENARIO)
    command = [CMP, "run", "--engines", "fake,llamacpp", "--scenario", "./killed.toml", "--model", model.path]
    command += ["--reference", "fake", "--no-gate", "-o", "fake.clock=real", "-o", "fake.decode_us=8000"]
    return [*command, "-o", "fake.child=1", "-o", f"fake.journal={folder / 'journal'}"], model.path


def _seconds_of_a_run() -> float:
    with TemporaryDirectory(prefix="cmp-bench-") as folder:
        command, _ = _prepare(Path(folder))
        start = time.monotonic()
        subprocess.run(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.DEVNULL, check=True)
        return time.monotonic() - start


def _kill_once(folder: Path, moment: float) -> tuple[list[str], str]:
    command, model_path = _prepare(folder)
    journal = folder / "journal"
    host = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    time.sleep(moment)
    ended = host.poll() is not None
    groups = {child.pid for child in _children(host.pid)}
    host.send_signal(signal.SIGKILL)
    host.wait()
    failures = []
    if left := _living(groups):
        failures.append(f"orphans {left}")
    manifests = list(folder.glob("results/*/manifest.json"))
    if not manifests:
        return failures, "before the manifest"
    run = manifests[0].parent
    journaled = len(journal.read_text().splitlines()) if journal.exists() else 0
    kept = [s for s in _samples(run) if s.engine == "fake" and s.phase != "load"]
    if journaled - len(kept) > 1:  # one may have ended in the engine while its answer was on the way
        failures.append(f"the engine finished {journaled} requests, {len(kept)} are on disk")
    done = subprocess.run(
        [CMP, "run", "--resume", str(run), "--model", model_path],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        failures.append(f"resume: {done.stderr.strip()}")
        return failures, "during the run"
    valid = Counter(s.engine for s in _samples(run) if s.phase == "measure" and s.status == "ok" and not s.flags)
    if valid != {"fake": 15, "llamacpp": 15} or read_manifest(run).status != "complete":
        failures.append(f"after resume: {dict(valid)}, {read_manifest(run).status}")
    return failures, "after the end" if ended else "during the run"


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _living(groups: set[int]) -> list[int]:
    """Return which of the processes are still there after a second's grace."""
    end = time.monotonic() + 1.0
    while left := [
        pid for pid in groups if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]:
        if time.monotonic() > end:
            return left
        time.sleep(0.01)
    return []


def _samples(run: Path) -> list[Sample]:
    """Return the whole lines; a torn last one is what kill -9 may leave."""
    lines = (run / "samples.jsonl").read_bytes().split(b"\n")[:-1]
    return [msgspec.json.decode(line, type=Sample) for line in lines]
