"""What the index engines share: they load no model and have no options but threads."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from enginecmp import EngineInfo, LoadOptions, Probe, UnknownOption


def info_of(name: str, distribution: str, licence: str, homepage: str) -> EngineInfo:
    """Return the facts of an index.

    Args:
        name: of the engine.
        distribution: that holds the library.
        licence: SPDX expression of the library.
        homepage: of the library.
    """
    try:
        found = version(distribution)
    except PackageNotFoundError:
        found = "not installed"
    return EngineInfo(
        name=name,
        version=found,
        licence=licence,
        devices=("cpu",),
        architectures=(),
        quantizations=(),
        environment={"OMP_NUM_THREADS": "{threads}", "OPENBLAS_NUM_THREADS": "{threads}"},
        tuned="nothing to tune: connectivity and expansion are the scenario's",
        operations=("retrieval",),
        homepage=homepage,
    )


def probe_of(name: str, module: str, requirement: str) -> Probe:
    """Return whether a library is here, and what brings it."""
    if find_spec(module) is not None:
        return Probe(ok=True)
    return Probe(
        ok=False, reason=f"{name}: expected the library {module}, it is not installed", fix=f"pip install {requirement}"
    )


def threads_of(name: str, options: LoadOptions) -> int:
    """Return the threads of a session.

    Raises:
        UnknownOption: an option was given.
    """
    for key in options.extra:
        msg = f"{name}: unknown option '{key}'; it has none, its settings are the scenario's"
        raise UnknownOption(msg)
    return options.threads
