"""The devices that tests run on: the emulator everywhere, a GPU where it is asked for.

One process drives one kind of device, so a run of the tests does too: `ENGINECMP_TEST_DEVICE=cuda pytest
plugins/custom_cuda` runs everything that takes `device` on the GPU and leaves out what needs the emulator.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import unchanged

from enginecmp import LoadOptions, ModelInfo
from enginecmp.testing.tiny_models import tiny_model
from enginecmp_custom_cuda import cmp_load, cmp_unload
from enginecmp_custom_cuda.device import Device, open_device

HERE = Path(__file__).parent
# Helpers beside the tests, custom_cuda_*.py, are modules of their own.
sys.path.append(str(HERE))
import custom_cuda_stamps  # noqa: E402

ON_GPU = os.environ.get("ENGINECMP_TEST_DEVICE") == "cuda"
NO_GPU = "needs a CUDA device and ENGINECMP_TEST_DEVICE=cuda"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what is here after all other tests of the process: from then on the emulator is the process' CUDA driver.

    Files that passed as they are need not run again, unless it is on a GPU.
    """
    items.sort(key=lambda item: HERE in item.path.parents)
    for item in [] if ON_GPU else items:
        if HERE in item.path.parents:
            item.stash[unchanged.STAMP] = unchanged.stamp_path(item.path, custom_cuda_stamps.inputs_of(item.path))


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


class Load(Protocol):
    """Load a model on the device of this run, exact and with a context of 256; the rest as `LoadOptions`."""

    def __call__(self, model: ModelInfo, **options: Any) -> Any: ...


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelInfo]:
    """Return the tiny model of an architecture and kind, written once."""
    return functools.cache(functools.partial(tiny_model, tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def load(device: Device) -> Iterator[Load]:
    sessions: list[Any] = []

    def load(model: ModelInfo, **options: Any) -> Any:
        asked: dict[str, Any] = {"context_tokens": 256, "numerics": "exact", "device": device.kind} | options
        sessions.append(cmp_load(model=model, options=LoadOptions(**asked)))
        return sessions[-1]

    yield load
    for session in sessions:
        cmp_unload(session)


@pytest.fixture(scope="session")
def token_ids() -> list[int]:
    """90 ids that every tiny vocabulary has, without a pattern."""
    return [(i * i * 7 + i * 13 + 3) % 251 for i in range(90)]
