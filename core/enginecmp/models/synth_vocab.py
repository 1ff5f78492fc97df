"""Vocabularies for synthesized models: a small one made here, or the embedded model's cut to another size."""

from __future__ import annotations

from typing import Any

from enginecmp.models.gguf_file import GGUFFile
from enginecmp.models.gguf_write import field

NORMAL, CONTROL, UNUSED = 1, 3, 5  # token types of GGUF
END = "<|endoftext|>"
MASK = "<|mask|>"

# A few merges of frequent English and code pairs, in the order in which they apply; Ġ is a space, Ċ a new line.
# Every part is a byte or the result of an earlier merge.
_MERGES = (
    "Ġ t", "h e", "Ġ a", "i n", "r e", "o n", "e r", "Ġt he", "Ġ s", "a t", "Ġ w", "Ġ o", "e n", "Ġ c", "i t", "i s",
    "a n", "o r", "e s", "Ġ b", "e d", "Ġ f", "in g", "Ġ p", "o u", "Ġa n", "a l", "a r", "Ġt o", "Ġ m", "Ġo f",
    "Ġ in", "Ġ d", "Ġ h", "Ġan d", "i c", "a s", "l e", "Ġt h", "i on", "o m", "l l", "en t", "Ġ n", "Ġ l", "s t",
    "Ġ re", "v e", "Ġ e", "r o", "l y", "Ġb e", "Ġ g", "Ġ ĠĠ", "Ġ Ġ", "Ċ Ġ", "Ġ =", "( )",
)  # fmt: skip


def byte_alphabet() -> list[str]:
    """Return the 256 characters of byte-level BPE, by byte value.

    Printable bytes stand for themselves, the others are moved to U+0100 and above (the GPT-2 convention).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]


def tiny_vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Return tokens, token types and merges of the self-made vocabulary, its end token last."""
    tokens = byte_alphabet()
    merges = []
    for merge in _MERGES:
        left, right = merge.split(" ")
        if left in tokens and right in tokens and left + right not in tokens:
            merges.append(merge)
            tokens.append(left + right)
    types = [NORMAL] * len(tokens) + [CONTROL]
    return [*tokens, END], types, merges


def tiny_fields(pre: str, *, masked: bool = False) -> tuple[list[bytes], int]:
    """Return the tokenizer's metadata fields for a tiny model, and the vocabulary's size; a mask token is its last."""
    tokens, types, merges = tiny_vocabulary()
    if masked:
        tokens, types = [*tokens, MASK], [*types, CONTROL]
    end = tokens.index(END)
    return _fields(pre, tokens, types, merges, {"bos": end, "eos": end}), len(tokens)


def borrowed_fields(source: GGUFFile, size: int, mask_id: int | None = None) -> list[bytes]:
    """Return the tokenizer's metadata fields of another model, cut or padded to `size` tokens.

    Merges that would make a token that was cut off go with it; padding tokens are marked unused. The token `mask_id`,
    one of the padding, is the mask.
    """
    metadata = source.metadata
    tokens: list[str] = metadata["tokenizer.ggml.tokens"][:size]
    types: list[int] = metadata["tokenizer.ggml.token_type"][:size]
    kept = set(tokens)
    merges = [merge for merge in metadata["tokenizer.ggml.merges"] if merge.replace(" ", "") in kept]
    padding = range(len(tokens), size)
    special = {
        name: int(metadata[f"tokenizer.ggml.{name}_token_id"])
        for name in ("bos", "eos")
        if metadata.get(f"tokenizer.ggml.{name}_token_id", size) < size
    }
    return _fields(
        str(metadata["tokenizer.ggml.pre"]),
        [*tokens, *(MASK if index == mask_id else f"[PAD{index}]" for index in padding)],
        [*types, *(CONTROL if index == mask_id else UNUSED for index in padding)],
        merges,
        special,
    )


def _fields(pre: str, tokens: list[str], types: list[int], merges: list[str], special: dict[str, Any]) -> list[bytes]:
    """Encode a byte-level BPE tokenizer."""
    return [
        field("tokenizer.ggml.model", "STRING", "gpt2"),
        field("tokenizer.ggml.pre", "STRING", pre),
        field("tokenizer.ggml.tokens", "STRING", tokens),
        field("tokenizer.ggml.token_type", "INT32", types),
        field("tokenizer.ggml.merges", "STRING", merges),
        *(field(f"tokenizer.ggml.{name}_token_id", "UINT32", token) for name, token in special.items()),
        field("tokenizer.ggml.add_bos_token", "BOOL", False),
        field("tokenizer.ggml.add_eos_token", "BOOL", False),
    ]
