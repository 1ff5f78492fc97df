"""Measure a GPU's limits and every kernel of the CUDA engine alone, in a few minutes.

    python plugins/custom_cuda/bench_gpu.py [--stage A|B|AB] [--device cuda|emulated] [--dry] [--out FOLDER]
                                            [--minutes 9] [--only PART,PART] [--kernels FOLDER]
                                            [--model FILE|llama-3.2-1b] [--wheels]

Whether the kernels are right is asked of the plugin's tests (`ENGINECMP_TEST_DEVICE=cuda pytest plugins/custom_cuda`),
how fast the engine is beside others of `cmp run`.

Each part runs in a process of its own with a time box of its own; one that fails, hangs or loses the device does not
stop the others. After every part FOLDER/report.json and FOLDER/table.txt are written anew. A measurement whose work was
not done right is shown in capitals and makes the exit code 1; 2 says that a part did not end. `--dry` rehearses all on
the CPU.

Needs Linux, Python 3.11 or newer, an NVIDIA driver for CUDA 13, and the packages numpy, msgspec, pluggy, gguf,
platformdirs, cuda-bindings (with cuda-pathfinder) and nvidia-cuda-nvrtc; `--wheels` lists what to bring. `enginecmp`
and `enginecmp_custom_cuda` are taken from this checkout where they are not installed. Optional: nvidia-smi.

report.json, schema "enginecmp-custom-cuda-gpu/1":

    began, arguments, device, timed, dry, model     of the run; "timed" is false on the emulator
    verdict                                         "right", "WRONG", "incomplete"
    seconds                                         of all parts until now
    parts: [{name, state, seconds, box_seconds, error, clocks, log, records}]
        state: "right" | "WRONG" | "failed" | "out of time" | "skipped"; records as in bench/parts.py
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NEEDED = ("numpy", "msgspec", "pluggy", "gguf", "platformdirs", "cuda.bindings", "cuda.pathfinder")


def use_checkout() -> None:
    """Let this process and those it starts find what is not installed in the checkout around this file."""
    root = HERE.parent.parent
    places = {"enginecmp": root / "core", "enginecmp_custom_cuda": HERE}
    added = [str(place) for name, place in places.items() if importlib.util.find_spec(name) is None and place.is_dir()]
    # This script's own folder is on the path of this process alone.
    added += [str(HERE)]
    sys.path += [place for place in added if place not in sys.path]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), *added)))


def main() -> int:
    """Look for what is needed, then run."""
    use_checkout()
    absent = []
    for name in NEEDED:
        try:
            if importlib.util.find_spec(name) is None:
                absent.append(name)
        except ModuleNotFoundError:
            absent.append(name)
    if absent:
        print(
            f"bench_gpu.py: expected the packages {', '.join(NEEDED)}, missing: {', '.join(absent)}; pip install them"
        )
        return 2
    from enginecmp_custom_cuda.bench.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
