"""The engine `usearch`: a proximity graph (HNSW) of the library USearch, float32, squared Euclidean distance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from enginecmp import EngineInfo, LoadOptions, ModelInfo, Probe, hookimpl
from enginecmp_retrieval.index import info_of, probe_of, threads_of


@hookimpl
def cmp_engine() -> EngineInfo:
    """Return the engine's facts."""
    return info_of("usearch", "usearch", "Apache-2.0", "https://github.com/unum-cloud/USearch")


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Say whether the library is here."""
    return probe_of("usearch", "usearch", "usearch==2.26.6")


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> int:
    """Return the session: the number of threads. No model is read."""
    return threads_of("usearch", options)


@hookimpl
def cmp_operation(session: int, kind: str, parameters: Mapping[str, Any]) -> Callable[[Any], Any] | None:
    """Build an index over `parameters["keys"]` and return its search, (batch, d) to ids (batch, k)."""
    if kind != "retrieval":
        return None
    import numpy as np
    from usearch.index import Index

    stored, k, threads = parameters["keys"], parameters["k"], session
    index = Index(
        ndim=stored.shape[1],
        metric="l2sq",
        dtype="f32",
        connectivity=parameters["connectivity"],
        expansion_add=parameters["ef_construction"],
        expansion_search=parameters["ef"],
    )
    index.add(np.arange(len(stored), dtype=np.uint64), stored, threads=threads)
    return lambda queries: index.search(queries, k, threads=threads).keys
