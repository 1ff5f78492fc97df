"""The devices that tests run on: the emulator everywhere, a GPU where it is asked for.

One process drives one kind of device, so a run of the tests does too: `ENGINECMP_TEST_DEVICE=cuda pytest
plugins/custom_cuda` runs everything that takes `device` on the GPU and leaves out what needs the emulator.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginecmp_custom_cuda.device import Device, open_device

# Helpers beside the tests, custom_cuda_*.py, are modules of their own.
sys.path.append(str(Path(__file__).parent))

ON_GPU = os.environ.get("ENGINECMP_TEST_DEVICE") == "cuda"
NO_GPU = "needs a CUDA device and ENGINECMP_TEST_DEVICE=cuda"


def opened(kind: str) -> Device:
    """Return a device of a kind, or skip the test with the reason."""
    if (kind == "cuda") != ON_GPU:
        pytest.skip(NO_GPU if kind == "cuda" else "this run's device is the GPU, the emulator's library cannot be too")
    if kind == "emulated" and sys.platform != "linux":
        pytest.skip("the emulator needs Linux")
    return open_device(kind)


@pytest.fixture(scope="session")
def emulated() -> Iterator[Device]:
    """The emulated device, with 4 multiprocessors unless a test sets others."""
    device = opened("emulated")
    yield device
    device.close()


@pytest.fixture(scope="session", params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """A device: every test that takes it has a twin on the GPU."""
    if request.param == "emulated":
        yield request.getfixturevalue("emulated")
        return
    device = opened("cuda")
    yield device
    device.close()
