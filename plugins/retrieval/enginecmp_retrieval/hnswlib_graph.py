"""The engine `hnswlib`: a proximity graph (HNSW) of the library hnswlib, float32, squared Euclidean distance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from enginecmp import EngineInfo, LoadOptions, ModelInfo, Probe, hookimpl
from enginecmp_retrieval.index import info_of, probe_of, threads_of


@hookimpl
def cmp_engine() -> EngineInfo:
    """Return the engine's facts."""
    return info_of("hnswlib", "hnswlib", "Apache-2.0", "https://github.com/nmslib/hnswlib")


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Say whether the library is here."""
    return probe_of("hnswlib", "hnswlib", "hnswlib==0.8.0")


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> int:
    """Return the session: the number of threads. No model is read."""
    return threads_of("hnswlib", options)


@hookimpl
def cmp_operation(session: int, kind: str, parameters: Mapping[str, Any]) -> Callable[[Any], Any] | None:
    """Build an index over `parameters["keys"]` and return its search, (batch, d) to ids (batch, k)."""
    if kind != "retrieval":
        return None
    import hnswlib

    stored, k, threads = parameters["keys"], parameters["k"], session
    index = hnswlib.Index(space="l2", dim=stored.shape[1])
    index.init_index(
        max_elements=len(stored),
        M=parameters["connectivity"],
        ef_construction=parameters["ef_construction"],
        random_seed=parameters["seed"] % (1 << 31),
    )
    index.set_num_threads(threads)
    index.add_items(stored, num_threads=threads)
    index.set_ef(parameters["ef"])
    return lambda queries: index.knn_query(queries, k, num_threads=threads)[0]
