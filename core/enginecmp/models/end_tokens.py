"""Which token ids end a text, by a model file's own word and by the names that such tokens have."""

from __future__ import annotations

from enginecmp.models.gguf_file import read_gguf

_KEYS = ("eos", "eot", "eom")
_NAMES = frozenset(
    ("</s>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>",
     "<|endofprompt|>", "<EOT>", "<|return|>", "<|call|>")
)  # fmt: skip


def end_tokens(path: str) -> tuple[int, ...]:
    """Return the ids that end a text, rising, by the file's metadata and by the names that llama.cpp knows.

    Args:
        path: of a GGUF file.

    Raises:
        ModelError: it is none.
    """
    metadata = read_gguf(path).metadata
    found = {metadata.get(f"tokenizer.ggml.{key}_token_id") for key in _KEYS}
    names = metadata.get("tokenizer.ggml.tokens", [])
    found |= {token for token, name in enumerate(names) if name in _NAMES}
    return tuple(sorted(token for token in found if isinstance(token, int)))
