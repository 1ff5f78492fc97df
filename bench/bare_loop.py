"""The PyTorch baseline's own module in a bare loop: no host, no hooks, no worker.

`python -m bench.bare_loop MODEL THREADS N_TOKENS TOKEN...` answers every line of stdin with one request, as a JSON
object: `ids`, and `token_ns`, when each was there.
"""

from __future__ import annotations

import json
import sys
import time

from enginecmp import read_gguf


def main(arguments: list[str]) -> None:
    """Load the model, then prefill and decode greedily for every line."""
    path, threads, n_tokens = arguments[0], *map(int, arguments[1:3])
    prompt = [int(token) for token in arguments[3:]]
    import torch

    from enginecmp_pytorch_baseline.config import read_config
    from enginecmp_pytorch_baseline.weights import load_model

    torch.set_num_threads(threads)
    file = read_gguf(path)
    config = read_config(file, len(prompt) + n_tokens)
    model = load_model(file, config, len(prompt) + n_tokens, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        for _ in sys.stdin:
            ids, token_ns = [], []
            cache = [None] * config.layers
            token = model(torch.tensor([prompt]), cache, 0, True)[:, -1].argmax(dim=-1, keepdim=True)
            ids.append(int(token))
            token_ns.append(time.perf_counter_ns())
            for step in range(n_tokens - 1):
                token = model(token, cache, len(prompt) + step, True)[:, -1].argmax(dim=-1, keepdim=True)
                ids.append(int(token))
                token_ns.append(time.perf_counter_ns())
            print(json.dumps({"ids": ids, "token_ns": token_ns}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
