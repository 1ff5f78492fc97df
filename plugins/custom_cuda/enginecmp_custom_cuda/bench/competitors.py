"""The part "competitors": `cmp run` with every engine that is here, on one file, by its own rules.

The host holds each engine against the reference, launches it in a process of its own and writes everything down; this
part says which engines, and keeps the verdict. The file is written beside the parts before this one (`model_file.py`).
On the emulator nothing is timed, so the rehearsal asks for the gate alone.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

from .context import Context
from .measurement import Measurement

ENGINES = {
    "custom_cuda": "enginecmp_custom_cuda",
    "pytorch_baseline": "enginecmp_pytorch_baseline",
    "llamacpp": "enginecmp_llamacpp",
    "transformers": "enginecmp_transformers",
}
"""By name: the package that is asked for. The first is measured with its decoders, too."""

DRY_ENGINES = ("custom_cuda", "pytorch_baseline")

SCENARIO = """name = "first"
description = "one user, prompts of 512 tokens, 128 to come"
primary_metric = "decode_tokens_per_second"

[[cells]]
prompt_tokens = {prompt}
output_tokens = {output}

[profile.full]
blocks = 3
requests = 4
warmup_requests = 1
"""
LEAST_SECONDS = 20.0
MODEL_FILE = "model.gguf"
"""In the run's folder."""


def run(context: Context) -> None:
    """Write the scenario, wait for the file, run, and keep what `cmp stats` says."""
    folder = context.folder
    wanted = DRY_ENGINES if context.dry else tuple(ENGINES)
    engines = [name for name in wanted if importlib.util.find_spec(ENGINES[name]) is not None]
    if absent := [name for name in wanted if name not in engines]:
        context.note(f"engines that are not installed: {', '.join(absent)}")
    file = model_file(context)
    if file is None:
        context.failed("the model's file was not written in time; pass --model FILE")
        return
    scenario = folder / "first.toml"
    scenario.write_text(SCENARIO.format(prompt=16 if context.dry else 512, output=4 if context.dry else 128))
    runs = folder / "runs"
    code, printed = host(context, *arguments_of(context, engines, file, scenario, runs))
    found = json.loads(printed[printed.index("{") :]) if "{" in printed else {}
    if code or not found:
        context.failed(f"cmp run ended with {code}: {(printed.splitlines() or [''])[-1][:300]}")
    if not found:
        return
    manifest = json.loads(Path(found["folder"], "manifest.json").read_text(encoding="utf-8"))
    for gate in manifest["equivalence"]:
        context.fact(f"gate {gate['engine']} {gate['quantization']}", gate["verdict"])
        if gate["engine"] == "custom_cuda":
            setting = {"engine": gate["engine"], "quantization": gate["quantization"]}
            context.measured(Measurement("gate", setting, (), gate["verdict"] == "equivalent"))
    if not context.dry:
        code, told = host(context, "stats", found["folder"])
        context.fact("stats", told[-4000:])


def arguments_of(context: Context, engines: list[str], file: Path, scenario: Path, runs: Path) -> list[str]:
    """Return the arguments of `cmp`."""
    devices = {name: context.device_kind if name == "custom_cuda" else "cpu" for name in engines}
    device = ",".join(f"{name}={kind}" for name, kind in devices.items()) if context.dry else "cuda"
    asked = ["run", "--engines", ",".join(engines), "--device", device, "--model", str(file)]
    asked += ["--scenario", str(scenario), "--out", str(runs), "--json", "--max-extra", "0"]
    asked += ["--score-positions", "4" if context.dry else "16"]
    if context.dry:
        return [*asked, "--quality-only"]
    # Beside float32, which the gate needs: what its users run.
    return [*asked, *(["-o", "pytorch_baseline.dtype=bfloat16"] if "pytorch_baseline" in engines else [])]


def host(context: Context, *arguments: str) -> tuple[int | None, str]:
    """Run `cmp`; return its exit code, None where its time was over, and what it printed."""
    command = [sys.executable, "-m", "enginecmp", *arguments]
    print("$", *command, flush=True)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None,
            text=True,
            check=False,
            timeout=max(1.0, context.left()),
        )
    except subprocess.TimeoutExpired:
        return None, ""
    print(done.stdout, flush=True)
    return done.returncode, done.stdout


def model_file(context: Context) -> Path | None:
    """Return the file that all engines read: the user's, or the one that is being written; None: not in time."""
    if Path(context.wanted_model).is_file():
        return Path(context.wanted_model)
    path = context.folder / MODEL_FILE
    while not path.is_file():
        if context.left() < LEAST_SECONDS:
            return None
        time.sleep(0.2)
    return path
