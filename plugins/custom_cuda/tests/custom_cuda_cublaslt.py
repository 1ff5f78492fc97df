"""A stand-in for cuBLASLt on the emulated device, compiled against the real cublasLt.h."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from enginecmp_custom_cuda.engine.prefill.cublaslt_library import Library

HERE = Path(__file__).parent
# What the wheels of the headers leave to a compiler of NVIDIA's.
HOST_DEFINES = """
#pragma once
#define __forceinline__ inline
#define __host__
#define __device__
#define __device_builtin__
#define __cudart_builtin__
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __attribute__((aligned(n)))
"""


def headers() -> Path:
    """Return the folder of cublasLt.h, or skip the test."""
    spec = importlib.util.find_spec("nvidia")
    places = [Path(place) / "cu13" / "include" for place in (spec.submodule_search_locations or [])] if spec else []
    found = next((place for place in places if (place / "cublasLt.h").is_file()), None)
    if found is None:
        pytest.skip("the wheel nvidia-cublas with its header is not installed")
    return found


def stand_in_library(folder: Path) -> Library:
    """Return the stand-in, compiled in a folder."""
    (folder / "crt").mkdir()
    (folder / "crt" / "host_defines.h").write_text(HOST_DEFINES)
    target = folder / "libcublasLt_stand_in.so"
    line = ["g++", "-O2", "-std=c++17", "-shared", "-fPIC", f"-I{folder}", "-isystem", str(headers())]
    subprocess.run([*line, str(HERE / "data" / "cublaslt_stub.cpp"), "-o", str(target)], check=True)
    return Library(str(target))
