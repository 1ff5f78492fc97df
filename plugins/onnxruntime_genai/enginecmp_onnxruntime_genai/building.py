"""A Hugging Face folder as an ONNX model with its genai_config.json, by onnxruntime-genai's own builder."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from enginecmp import UnsupportedModel, plain
from enginecmp.plugin_tools.exporting import exported

from .name import ENGINE

CONFIG = "genai_config.json"
MODEL = "model.onnx"

# Of the builder's accuracy_level: the type in front of quantized weights. 4 is its own default on CPUs.
_LEVELS = {"int8": 4, "fp32": 1}
_VERSIONS = ("onnxruntime-genai", "onnxruntime")


def built(folder: str, sha256: str, weights: str, activations: str, head: str) -> Path:
    """Return the ONNX model of a folder, built where there is none yet.

    Args:
        folder: the Hugging Face folder.
        sha256: of it; names the export, together with the versions.
        weights: "fp32", "int8" or "int4".
        activations: in front of quantized weights: "int8" or "fp32".
        head: "last": logits of a prompt's last position alone; "all": of every position.

    Raises:
        UnsupportedModel: the builder does not take it, or would not follow it.
    """
    refuse_unscaled(Path(folder))
    settings = {
        "hf_token": "false",
        "prune_lm_head": str(head == "last").lower(),
        # See window_of.
        "windowed_kv_cache": "false",
    }
    asked = f"{weights}-{head}"
    if weights != "fp32":
        settings["accuracy_level"] = str(_LEVELS[activations])
        asked = f"{weights}-{activations}-{head}"

    def command(target: Path) -> list[str]:
        places = ["-i", folder, "-o", str(target), "-c", str(target)]
        options = [f"{key}={value}" for key, value in settings.items()]
        program = [sys.executable, "-P", "-m", "onnxruntime_genai.models.builder"]
        return [*program, *places, "-p", weights, "-e", "cpu", "--extra_options", *options]

    key = "-".join((sha256, asked, *(metadata.version(name) for name in _VERSIONS)))
    return exported(ENGINE, "onnxruntime_genai.models.builder", folder, key=key, needs=CONFIG, command=command)


def window_of(folder: Path) -> int | None:
    """Return the length of the model's sliding window in tokens, beyond which no request may go; None without one.

    With a cache of the window's length the CPU's generator stops ("the output OrtValue provided for output
    present.0.key"), and with a whole one the builder leaves the window out (onnxruntime-genai 0.18.0). Up to the
    window's length there is no difference.
    """
    config = _config(folder)
    window = config.get("sliding_window")
    return int(window) if window and config.get("use_sliding_window", True) else None


def refuse_unscaled(folder: Path) -> None:
    """Refuse a llama whose rotary frequencies the builder would leave as they are, in silence.

    Its class for `LlamaForCausalLM` reads `rope_type` llama3 alone (onnxruntime-genai 0.18.0, builders/llama.py), where
    the one that it derives from reads linear too.

    Raises:
        UnsupportedModel: it asks for such a scaling.
    """
    config = _config(folder)
    if config.get("architectures") != ["LlamaForCausalLM"]:
        return
    for key in ("rope_scaling", "rope_parameters"):
        scaling = config.get(key) or {}
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind not in ("default", "llama3"):
            msg = (
                f"{ENGINE}: expected a llama with {key} of type default or llama3, got {plain(repr(kind), 60)}, which "
                "onnxruntime_genai.models.builder ignores; compare this model with --engines without " + ENGINE
            )
            raise UnsupportedModel(msg)


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return config
