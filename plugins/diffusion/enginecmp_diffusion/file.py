"""The trained network as a GGUF file of LLaDA's architecture, and the text it predicts best."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginecmp import ModelInfo
from enginecmp.models.gguf_write import TensorPlan, field, write_gguf
from enginecmp.models.info import describe
from enginecmp_diffusion.corpus import Corpus
from enginecmp_diffusion.network import Network, Shape

_NORMAL, _CONTROL = 1, 3  # token types of GGUF


def write(path: Path, network: Network, corpus: Corpus, description: str) -> ModelInfo:
    """Write the file and return what it is.

    Args:
        path: where it appears.
        network: trained.
        corpus: that it was trained on; its tokens are the file's.
        description: one line that stays with the file.
    """
    weights = {name: parameter.detach().float().numpy() for name, parameter in network.named_parameters()}
    plans = [TensorPlan(name=name, shape=tuple(values.shape), type="F32") for name, values in weights.items()]
    fields = [field(key, kind, value) for key, (kind, value) in _metadata(network.shape, corpus, description).items()]
    sha256 = write_gguf(path, fields, plans, lambda plan: [_bytes(weights[plan.name])])
    return describe(path, sha256=sha256)


def _metadata(shape: Shape, corpus: Corpus, description: str) -> Mapping[str, tuple[str, Any]]:
    head_dim = shape.width // shape.heads
    end = len(corpus.tokens) - 2
    return {
        "general.architecture": ("STRING", "llada"),
        "general.type": ("STRING", "model"),
        "general.name": ("STRING", "diffusion-small"),
        "general.description": ("STRING", description),
        "general.file_type": ("UINT32", 0),
        "llada.block_count": ("UINT32", shape.layers),
        "llada.context_length": ("UINT32", shape.context),
        "llada.embedding_length": ("UINT32", shape.width),
        "llada.feed_forward_length": ("UINT32", shape.feed_forward),
        "llada.attention.head_count": ("UINT32", shape.heads),
        "llada.attention.head_count_kv": ("UINT32", shape.heads),
        "llada.attention.layer_norm_rms_epsilon": ("FLOAT32", shape.epsilon),
        "llada.attention.causal": ("BOOL", False),
        "llada.rope.dimension_count": ("UINT32", head_dim),
        "llada.rope.freq_base": ("FLOAT32", shape.rope_base),
        "llada.vocab_size": ("UINT32", shape.vocabulary),
        "diffusion.shift_logits": ("BOOL", False),
        "tokenizer.ggml.model": ("STRING", "gpt2"),
        "tokenizer.ggml.pre": ("STRING", "gpt-2"),
        "tokenizer.ggml.tokens": ("STRING", corpus.tokens),
        "tokenizer.ggml.token_type": ("INT32", [_NORMAL] * end + [_CONTROL] * 2),
        "tokenizer.ggml.merges": ("STRING", corpus.merges),
        "tokenizer.ggml.bos_token_id": ("UINT32", end),
        "tokenizer.ggml.eos_token_id": ("UINT32", end),
        "tokenizer.ggml.mask_token_id": ("UINT32", end + 1),
        "tokenizer.ggml.add_bos_token": ("BOOL", False),
        "tokenizer.ggml.add_eos_token": ("BOOL", False),
    }


def _bytes(values: NDArray[np.float32]) -> bytes:
    return values.astype(np.float32).tobytes()
