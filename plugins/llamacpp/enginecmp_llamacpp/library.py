"""Where the shared libraries of llama-cpp-python lie; found without importing it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path


def library_folder() -> Path | None:
    """Return where llama-cpp-python looks for its shared libraries, or None where it is not installed."""
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    if override:
        return Path(override)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "lib"
