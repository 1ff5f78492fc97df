"""The model's own tokenizer, built from the GGUF's metadata: the host makes every prompt's ids once, with this.

Two kinds are known: byte-level BPE ("gpt2") with the splitting rules named by `tokenizer.ggml.pre`, and
SentencePiece BPE ("llama"). The tests hold both against llama.cpp's tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginecmp.errors import ModelError, UnsupportedModel, did_you_mean
from enginecmp.models.gguf_file import GGUFFile, read_gguf

if TYPE_CHECKING:
    import tokenizers

# Token types of GGUF.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

# How text is cut before merging, as the models' own tokenizers state it. Each rule cuts what the one before left.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {
    "gpt-2": (_GPT2,),
    "mpt": (_GPT2,),
    "olmo": (_GPT2,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "smollm": (r"\p{N}", _GPT2),
    "starcoder": (r"\p{N}", _GPT2),
    "refact": (r"\p{N}", _GPT2),
    "command-r": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "qwen2": (_QWEN2,),
}
# A whole word that is a token is taken as it is, without merging.
_IGNORE_MERGES = frozenset({"llama-bpe", "llama3"})


class ModelTokenizer:
    """Text to token ids and back, as the model was trained.

    Attributes:
        vocabulary: number of token ids.
        bos_id: the id that a prompt begins with where the model wants one, else None.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, vocabulary: int, bos_id: int | None) -> None:
        self._tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.bos_id = bos_id

    def encode(self, text: str) -> list[int]:
        """Return a text's ids; special tokens written out in it become their ids, none is added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of some ids; bytes that are no UTF-8 become U+FFFD."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return text


def load_tokenizer(path: Path | str) -> ModelTokenizer:
    """Return the tokenizer of a GGUF file.

    Raises:
        ModelError: the file is not well-formed, or its tokenizer contradicts itself.
        UnsupportedModel: a kind of tokenizer that is not known here.
    """
    return tokenizer_of(read_gguf(path))


def tokenizer_of(file: GGUFFile) -> ModelTokenizer:
    """Return the tokenizer of a GGUF file that is already read.

    Raises:
        ModelError: the tokenizer contradicts itself.
        UnsupportedModel: a kind of tokenizer that is not known here.
    """
    kind = file.metadata.get("tokenizer.ggml.model")
    tokens = _list(file, "tokens", str)
    try:
        if kind == "gpt2":
            tokenizer = _byte_level(file, tokens)
        elif kind == "llama":
            tokenizer = _sentence_piece(file, tokens)
        else:
            msg = f"{file.path}: expected a tokenizer of kind gpt2 or llama, came {kind!r}"
            raise UnsupportedModel(msg)
    except (ValueError, TypeError) as error:
        raise _contradiction(file, str(error)) from error
    except Exception as error:
        # The tokenizers library raises plain Exception for what its Rust side refuses.
        if type(error) is not Exception:
            raise
        raise _contradiction(file, str(error)) from error
    _add_specials(file, tokenizer, tokens)
    return ModelTokenizer(tokenizer, len(tokens), _bos_id(file, str(kind), len(tokens)))


def _byte_level(file: GGUFFile, tokens: list[str]) -> tokenizers.Tokenizer:
    """Return a byte-level BPE tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pre = str(file.metadata.get("tokenizer.ggml.pre", "default"))
    if pre not in _SPLITS:
        msg = f"{file.path}: expected a known tokenizer.ggml.pre, came '{pre}'{did_you_mean(pre, _SPLITS)}"
        raise UnsupportedModel(msg)
    merges = [_pair(merge) for merge in _list(file, "merges", str)]
    tokenizer = Tokenizer(models.BPE(_numbered(tokens), merges, ignore_merges=pre in _IGNORE_MERGES))
    splits: list[Any] = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in _SPLITS[pre]]
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(file: GGUFFile, tokens: list[str]) -> tokenizers.Tokenizer:
    """Return a SentencePiece BPE tokenizer; its merges follow from the tokens' scores."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = _list(file, "scores", float)
    if len(scores) != len(tokens):
        raise _contradiction(file, f"{len(scores)} scores for {len(tokens)} tokens")
    ids = _numbered(tokens)
    ranked = []
    for token, score in zip(tokens, scores, strict=True):
        ranked += [
            (-score, ids[token[:cut]], ids[token[cut:]], token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in ids and token[cut:] in ids
        ]
    # Best score first; for one token the halves that came first in the vocabulary.
    ranked.sort()
    merges = [(left, right) for *_, left, right in ranked]
    types = file.metadata.get("tokenizer.ggml.token_type", [])
    unknown = tokens[types.index(_UNKNOWN)] if _UNKNOWN in types else None
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefixed = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    steps: list[Any] = [normalizers.Prepend("▁")] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip: list[Any] = [decoders.Strip(" ", 1, 0)] if prefixed else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _add_specials(file: GGUFFile, tokenizer: tokenizers.Tokenizer, tokens: list[str]) -> None:
    """Let control and user-defined tokens be read from text as a whole."""
    from tokenizers import AddedToken

    types = file.metadata.get("tokenizer.ggml.token_type", [])
    special = [AddedToken(token, special=True, normalized=False) for token, t in zip(tokens, types, strict=False)
               if t in (_CONTROL, _USER_DEFINED) and token]  # fmt: skip
    tokenizer.add_special_tokens(special)


def _bos_id(file: GGUFFile, kind: str, vocabulary: int) -> int | None:
    """Return the id that every prompt begins with, or None."""
    pre = file.metadata.get("tokenizer.ggml.pre")
    # Without the key, SentencePiece and Llama 3 tokenizers begin with one, the others do not.
    wanted = file.metadata.get("tokenizer.ggml.add_bos_token", kind == "llama" or pre in _IGNORE_MERGES)
    bos = file.metadata.get("tokenizer.ggml.bos_token_id")
    return bos if wanted and type(bos) is int and bos < vocabulary else None


def _list(file: GGUFFile, name: str, kind: type) -> list[Any]:
    """Return one of the tokenizer's lists."""
    value = file.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not value or not all(isinstance(item, kind) for item in value):
        msg = f"{file.path}: expected a list of {kind.__name__} in 'tokenizer.ggml.{name}', the file has none"
        raise ModelError(msg)
    return value


def _numbered(tokens: list[str]) -> dict[str, int]:
    """Return the ids by token."""
    return {token: index for index, token in enumerate(tokens)}


def _pair(merge: str) -> tuple[str, str]:
    """Return the two halves of a merge, which a space divides."""
    left, _, right = merge.partition(" ")
    return left, right


def _contradiction(file: GGUFFile, reason: str) -> ModelError:
    """Return the error of a tokenizer that cannot be built."""
    first_line = reason.splitlines()[0] if reason else "no reason"
    return ModelError(f"{file.path}: expected a consistent tokenizer, came: {first_line}")
