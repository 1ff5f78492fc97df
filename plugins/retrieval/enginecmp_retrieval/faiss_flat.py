"""The engine `faiss_flat`: exact search (IndexFlatL2) of the library Faiss, every key compared with every query."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from enginecmp import EngineInfo, LoadOptions, ModelInfo, Probe, hookimpl
from enginecmp_retrieval.index import info_of, probe_of, threads_of


@hookimpl
def cmp_engine() -> EngineInfo:
    """Return the engine's facts."""
    return info_of("faiss_flat", "faiss-cpu", "MIT", "https://github.com/facebookresearch/faiss")


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Say whether the library is here."""
    return probe_of("faiss_flat", "faiss", "faiss-cpu==1.15.1")


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> int:
    """Return the session: the number of threads. No model is read."""
    return threads_of("faiss_flat", options)


@hookimpl
def cmp_operation(session: int, kind: str, parameters: Mapping[str, Any]) -> Callable[[Any], Any] | None:
    """Build an index over `parameters["keys"]` and return its search, (batch, d) to ids (batch, k)."""
    if kind != "retrieval":
        return None
    import faiss

    stored, k = parameters["keys"], parameters["k"]
    faiss.omp_set_num_threads(session)
    index = faiss.IndexFlatL2(stored.shape[1])
    index.add(stored)
    return lambda queries: index.search(queries, k)[1]
