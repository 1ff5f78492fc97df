"""What kernels of prompts and of steps share: pages of the KV cache, the ring of ids, their parameters."""
