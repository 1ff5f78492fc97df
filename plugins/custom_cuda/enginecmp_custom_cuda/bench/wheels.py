r"""What a machine without a network must be brought: this project's wheels and those that they need, by version.

python plugins/custom_cuda/bench_gpu.py --wheels > needed.txt
pip download --no-deps --only-binary :all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
    --dest wheels --requirement needed.txt
uv build --wheel --out-dir wheels .          # and for each of the plugins, as the list says
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import metadata

ROOTS = {
    "enginecmp": ("test",),
    "enginecmp-custom-cuda": (),
    "enginecmp-pytorch-baseline": (),
}
"""Distributions of this project that a run takes part in, with their extras."""

THERE = ("torch", "triton", "nvidia-", "cuda-toolkit")
"""Beginnings of names that a machine with PyTorch for CUDA has: it brings NVRTC, cuBLAS and their bindings."""

KEPT = ("nvidia-ml-py",)
"""Begins like those, and is none."""


def lines() -> Iterator[str]:
    """Yield a file of requirements, with comments: this project's wheels, the others, and what is expected there."""
    own, others, there = set(ROOTS), {}, set()
    for name, version in closure(ROOTS):
        if name in own:
            continue
        if expected(name):
            there.add(name)
        else:
            others[name] = version
    yield "# build here by uv build --wheel --out-dir wheels FOLDER: ., plugins/custom_cuda, plugins/pytorch_baseline"
    yield "# download; then there: pip install --no-index --find-links wheels " + " ".join(sorted(own))
    yield from (f"{name}=={version}" for name, version in sorted(others.items()))
    yield f"# expected there, with PyTorch for CUDA: {', '.join(sorted(there))}"


def expected(name: str) -> bool:
    """Return whether a machine with PyTorch for CUDA has a distribution."""
    return name.startswith(THERE) and name not in KEPT


def closure(roots: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    """Yield name and version of distributions and of all that they need, each once, as they are installed here.

    Args:
        roots: names, and the extras that are wanted of each.

    Raises:
        PackageNotFoundError: one of the roots is not installed.
    """
    from packaging.requirements import Requirement

    waiting: list[tuple[str, Iterable[str]]] = list(roots.items())
    seen: set[tuple[str, str]] = set()
    told: set[str] = set()
    while waiting:
        name, extras = waiting.pop()
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name in roots:
                raise
            continue  # for another platform, or not needed by this version of Python
        if name not in told:
            told.add(name)
            yield name, found.version
        if expected(name):
            continue  # with all that it needs
        for extra in ("", *extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in found.requires or ():
                one = Requirement(text)
                if one.marker is None or one.marker.evaluate({"extra": extra}):
                    waiting.append((re.sub(r"[-_.]+", "-", one.name).lower(), one.extras))
