"""On how many GPUs a server computes, where its start command or the user says so."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .options import Settings

_PARALLEL = re.compile(
    r"(?:^|\s)(?:"
    r"(?P<tensor>--tensor[-_]parallel[-_]size|-tp|--tp|--tp[-_]size|--num[-_]shard)"
    r"|(?P<pipeline>--pipeline[-_]parallel[-_]size|-pp|--pp|--pp[-_]size)"
    r"|(?P<data>--data[-_]parallel[-_]size|-dp|--dp|--dp[-_]size)"
    r")(?:=|\s+)(?P<size>[1-9]\d{0,3})(?=\s|$)"
)
"""As vLLM, SGLang, TensorRT-LLM and Text Generation Inference call them; the sizes multiply."""


def gpus_of(settings: Settings, device: str) -> Mapping[str, float]:
    """Return the number of GPUs, and the size of tensor parallelism, where they are known.

    Args:
        settings: whose start command is looked at where the user named no number.
        device: that the engine was loaded for; a server on CPUs has no GPU.
    """
    sizes = {"tensor": 1, "pipeline": 1, "data": 1}
    for match in _PARALLEL.finditer(settings.start):
        sizes[next(name for name in sizes if match[name])] = int(match["size"])
    found = {"tensor_parallel_size": float(sizes["tensor"])} if settings.start else {}
    if settings.gpus:
        return found | {"gpus": float(settings.gpus)}
    if device == "cpu" or not settings.start:
        return found
    return found | {"gpus": float(sizes["tensor"] * sizes["pipeline"] * sizes["data"])}
