"""The engine `my_engine` for enginecmp: one module, one request at a time.

It works as it is: a llama in NumPy, float32. Put your engine's calls in place of the class `Llama`.
"""

from importlib.metadata import version

from enginecmp import ContextOverflow, EngineError, EngineInfo, GGUFKeys, Probe, UnknownOption, hookimpl, read_gguf

# What this engine reads of a file, or what changes no number. It refuses files that ask for more.
KNOWN_KEYS = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("rope.dimension_count", "rope.freq_base"),
}


@hookimpl
def cmp_engine():
    return EngineInfo(
        name="my_engine",
        version=version("numpy"),
        licence="BSD-3-Clause",
        devices=("cpu",),
        architectures=("llama",),
        quantizations=("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"),
        # Native libraries read these once, at import: the host sets them before the interpreter starts.
        environment={"OMP_NUM_THREADS": "{threads}", "OPENBLAS_NUM_THREADS": "{threads}"},
        tuned="nothing to tune",
    )


@hookimpl
def cmp_probe(options):
    return Probe(ok=True)


@hookimpl
def cmp_load(model, options):
    for key in options.extra:
        raise UnknownOption(f"my_engine: unknown option '{key}'; this engine has none")
    return Llama(model.path, options.context_tokens)


@hookimpl
def cmp_reset(session):
    session.length = 0


@hookimpl
def cmp_prefill(session, token_ids, output_tokens):
    session.require(token_ids, output_tokens)
    session.last = int(session.forward(token_ids, last_only=True)[-1].argmax())
    return session.last


@hookimpl
def cmp_decode(session, n_tokens):
    for _ in range(n_tokens):
        session.last = int(session.forward([session.last], last_only=True)[-1].argmax())
        yield session.last


@hookimpl
def cmp_score(session, token_ids):
    session.require(token_ids, 1)
    return session.forward(token_ids, last_only=False)


@hookimpl
def cmp_metrics(session):
    used = session.keys[:, : session.length].nbytes + session.values[:, : session.length].nbytes
    return {"weights_bytes": session.weights_bytes, "kv_cache_bytes": used}


class Llama:
    def __init__(self, path, context_tokens):
        import numpy as np  # here and not above: discovery imports this module to read its facts

        self.np = np
        file = read_gguf(path)
        keys = GGUFKeys("my_engine", file, ("llama",))
        keys.refuse_unknown(KNOWN_KEYS)
        self.layers, self.heads = keys.integer("block_count"), keys.integer("attention.head_count")
        self.kv_heads = keys.integer("attention.head_count_kv", self.heads)
        self.epsilon = keys.number("attention.layer_norm_rms_epsilon")
        self.width = keys.integer("embedding_length") // self.heads
        if (turning := keys.integer("rope.dimension_count", self.width)) != self.width:
            keys.refuse(f"heads that turn as a whole, {self.width} dimensions", f"rope.dimension_count {turning}")
        self.w = {name: file.float32(name) for name in file.tensors}
        self.require_tensors(keys)
        self.weights_bytes = sum(tensor.nbytes for tensor in self.w.values())
        self.head = self.w.get("output.weight", self.w["token_embd.weight"])  # tied where there is no head
        pairs = np.arange(0, self.width, 2, dtype=np.float32) / self.width
        self.frequencies = keys.number("rope.freq_base", 10000.0) ** -pairs
        self.frequencies /= self.w.get("rope_freqs.weight", np.float32(1))
        self.context_tokens = context_tokens
        shape = (self.layers, context_tokens, self.kv_heads, self.width)
        self.keys, self.values, self.length = np.zeros(shape, np.float32), np.zeros(shape, np.float32), 0

    def require(self, token_ids, output_tokens):
        vocabulary = len(self.w["token_embd.weight"])
        if not token_ids or not 0 <= min(token_ids) <= max(token_ids) < vocabulary:
            raise EngineError(f"my_engine: expected one id in [0, {vocabulary}) or more, got {list(token_ids)[:9]}")
        tokens = len(token_ids) + output_tokens - 1  # the last one is never run
        if tokens > self.context_tokens:
            raise ContextOverflow(
                f"my_engine: request needs {tokens} tokens, the context holds {self.context_tokens}; load with more"
            )

    def require_tensors(self, keys):
        hidden, inner = keys.integer("embedding_length"), keys.integer("feed_forward_length")
        q, kv = self.heads * self.width, self.kv_heads * self.width
        shapes = {"attn_norm": (hidden,), "attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden)}
        shapes |= {"attn_output": (hidden, q), "ffn_norm": (hidden,), "ffn_gate": (inner, hidden)}
        shapes |= {"ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
        for name, shape in ((f"blk.{n}.{part}.weight", shapes[part]) for n in range(self.layers) for part in shapes):
            if name not in self.w or self.w[name].shape != shape:
                keys.refuse(f"{name} of shape {shape}", self.w[name].shape if name in self.w else "none")

    def norm(self, x, name):
        scale = self.np.sqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
        return x / scale * self.w[name]

    def rope(self, x, positions):  # (T, heads, width); llama's GGUF pairs neighbours
        angle = (positions[:, None] * self.frequencies)[:, None]
        cos, sin = self.np.cos(angle), self.np.sin(angle)
        even, odd = x[..., 0::2], x[..., 1::2]
        return self.np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)

    def forward(self, token_ids, last_only):
        np, n = self.np, len(token_ids)
        positions = np.arange(self.length, self.length + n, dtype=np.float32)
        seen = np.arange(self.length + n)
        hidden = seen[None, :] > positions[:, None]  # (T, T so far): nobody looks ahead
        x = self.w["token_embd.weight"][list(token_ids)]
        for layer in range(self.layers):
            name = f"blk.{layer}."
            y = self.norm(x, name + "attn_norm.weight")
            q, k, v = (y @ self.w[f"{name}attn_{part}.weight"].T for part in "qkv")
            q = self.rope(q.reshape(n, self.heads, self.width), positions)
            self.keys[layer, self.length : len(seen)] = self.rope(k.reshape(n, self.kv_heads, self.width), positions)
            self.values[layer, self.length : len(seen)] = v.reshape(n, self.kv_heads, self.width)
            group = self.heads // self.kv_heads
            keys, values = (np.repeat(c[layer, : len(seen)], group, axis=1) for c in (self.keys, self.values))
            scores = np.einsum("thd,shd->hts", q, keys) / np.sqrt(np.float32(self.width))
            scores = np.where(hidden, -np.inf, scores)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = np.einsum("hts,shd->thd", weights / weights.sum(-1, keepdims=True), values)
            x = x + mixed.reshape(n, -1) @ self.w[name + "attn_output.weight"].T
            y = self.norm(x, name + "ffn_norm.weight")
            gate = y @ self.w[name + "ffn_gate.weight"].T
            up = y @ self.w[name + "ffn_up.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self.w[name + "ffn_down.weight"].T
        self.length += n
        x = self.norm(x[-1:] if last_only else x, "output_norm.weight")
        return (x @ self.head.T).astype(np.float32)
