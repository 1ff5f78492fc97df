"""What each kind of server calls what it tells on /metrics, under one name each.

Sources: vLLM 0.32 and llama-server 0.7.0 as they answer; SGLang's and Text Generation Inference's documented lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

_Alternatives = tuple[tuple[str, ...], ...]
"""Of one value: the first of these whose samples are all there; several samples are added."""

RUNNING, WAITING, KV_SHARE = "server_requests_running", "server_requests_waiting", "server_kv_used_share"
PREEMPTIONS, QUERIES, HITS = "server_preemptions", "server_prefix_query_tokens", "server_prefix_hit_tokens"
PROMPT, OUTPUT = "server_prompt_tokens", "server_output_tokens"

NAMES: Mapping[str, Mapping[str, _Alternatives]] = {
    "vllm": {
        RUNNING: (("vllm:num_requests_running",),),
        WAITING: (("vllm:num_requests_waiting",),),
        KV_SHARE: (("vllm:kv_cache_usage_perc",), ("vllm:gpu_cache_usage_perc",)),
        PREEMPTIONS: (("vllm:num_preemptions_total",),),
        QUERIES: (("vllm:prefix_cache_queries_total",), ("vllm:gpu_prefix_cache_queries_total",)),
        HITS: (("vllm:prefix_cache_hits_total",), ("vllm:gpu_prefix_cache_hits_total",)),
        PROMPT: (("vllm:prompt_tokens_total",),),
        OUTPUT: (("vllm:generation_tokens_total",),),
    },
    "sglang": {
        RUNNING: (("sglang:num_running_reqs",),),
        WAITING: (("sglang:num_queue_reqs",),),
        KV_SHARE: (("sglang:token_usage",),),
        PREEMPTIONS: (("sglang:num_retracted_reqs",),),
        QUERIES: (("sglang:prompt_tokens_total",),),
        HITS: (("sglang:cached_tokens_total",),),
        PROMPT: (("sglang:prompt_tokens_total",),),
        OUTPUT: (("sglang:generation_tokens_total",),),
    },
    "tgi": {
        RUNNING: (("tgi_batch_current_size",),),
        WAITING: (("tgi_queue_size",),),
        PROMPT: (("tgi_request_input_length_sum",),),
        OUTPUT: (("tgi_request_generated_tokens_sum",),),
    },
    "llama_server": {
        RUNNING: (("llamacpp:requests_processing",),),
        WAITING: (("llamacpp:requests_deferred",),),
        KV_SHARE: (("llamacpp:kv_cache_usage_ratio",),),
        # Its count of prompt tokens leaves out those that were found in the cache.
        QUERIES: (("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),),
        HITS: (("llamacpp:prompt_tokens_cached_total",),),
        PROMPT: (("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),),
        OUTPUT: (("llamacpp:tokens_predicted_total",),),
    },
}
"""Kind of server → our name → its own names."""


def named_values(kind: str, samples: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return what a server told, under our names.

    Args:
        kind: key of `NAMES`.
        samples: its own name and value of each sample, one for each set of labels (a replica, a rank).

    Returns:
        Counts and numbers of requests added over all labels; of a share the largest.
    """
    told: dict[str, list[float]] = {}
    for name, value in samples:
        told.setdefault(name, []).append(value)
    found = {}
    for ours, alternatives in NAMES[kind].items():
        over_labels: Callable[[list[float]], float] = max if ours == KV_SHARE else sum
        for theirs in alternatives:
            if all(name in told for name in theirs):
                found[ours] = float(sum(over_labels(told[name]) for name in theirs))
                break
    return found


def wanted(kind: str) -> frozenset[bytes]:
    """Return the server's own names that anything is made of."""
    return frozenset(n.encode() for alternatives in NAMES[kind].values() for names in alternatives for n in names)
