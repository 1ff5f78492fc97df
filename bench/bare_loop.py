"""The PyTorch baseline's own module in a bare loop: no host, no hooks, no worker.

`python -m bench.bare_loop MODEL THREADS N_TOKENS REPETITIONS TOKEN...` prints one decode rate a line, tokens per
second, after one repetition to warm up.
"""

from __future__ import annotations

import sys
import time

from enginecmp import read_gguf


def main(arguments: list[str]) -> None:
    """Load the model, then prefill and decode greedily, timing only the decode steps."""
    path, threads, n_tokens, repetitions = arguments[0], *map(int, arguments[1:4])
    prompt = [int(token) for token in arguments[4:]]
    import torch

    from enginecmp_pytorch_baseline.config import read_config
    from enginecmp_pytorch_baseline.weights import load_model

    torch.set_num_threads(threads)
    file = read_gguf(path)
    config = read_config(file, len(prompt) + n_tokens)
    model = load_model(file, config, len(prompt) + n_tokens, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        for repetition in range(repetitions + 1):
            cache = [None] * config.layers
            token = model(torch.tensor([prompt]), cache, 0, True)[:, -1].argmax(dim=-1, keepdim=True)
            start = time.perf_counter()
            for step in range(n_tokens - 1):
                token = model(token, cache, len(prompt) + step, True)[:, -1].argmax(dim=-1, keepdim=True)
                int(token)
            rate = (n_tokens - 1) / (time.perf_counter() - start)
            if repetition:
                print(rate)


if __name__ == "__main__":
    main(sys.argv[1:])
