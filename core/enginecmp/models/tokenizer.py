"""The model's own tokenizer, built from the GGUF's metadata: every prompt's ids are made once, with this.

The host runs it in a process of its own (`isolated_tokenizer`); in a worker it is part of the engine's process.

Two kinds are known: byte-level BPE ("gpt2") with the splitting rules named by `tokenizer.ggml.pre`, and
SentencePiece BPE ("llama"). The tests hold both against llama.cpp's tokenizer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginecmp.errors import ModelError, UnsupportedModel, did_you_mean
from enginecmp.format.text import plain
from enginecmp.models.gguf_file import GGUFFile, read_gguf
from enginecmp.models.gguf_header import short

if TYPE_CHECKING:
    import tokenizers

MAX_CUT_CHARACTERS = 2**27
"""Most work to derive a SentencePiece vocabulary's merges: 8 times that of 256,000 tokens of 8 characters."""

# Token types of GGUF.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

# How text is cut before merging, as the models' own tokenizers state it. Each rule cuts what the one before left.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPLITS = {
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
"""Regular expressions by `tokenizer.ggml.pre`."""

# A whole word that is a token is taken as it is, without merging.
_IGNORE_MERGES = frozenset({"llama-bpe", "llama3"})


class ModelTokenizer:
    """Text to token ids and back, as the model was trained.

    Attributes:
        vocabulary: number of token ids.
        bos_id: the id that a prompt begins with where the model wants one, else None.
    """

    def __init__(
        self,
        path: Path,
        tokenizer: tokenizers.Tokenizer,
        vocabulary: int,
        bos_id: int | None,
        user_defined: Collection[str] = (),
    ) -> None:
        self._path = path
        self._tokenizer = tokenizer
        self._user_defined = user_defined
        self.vocabulary = vocabulary
        self.bos_id = bos_id

    def encode(self, text: str) -> list[int]:
        """Return a text's ids; special tokens written out in it become their ids, none is added.

        Raises:
            ModelError: the tokenizer contradicts itself.
        """
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            raise _contradiction(self._path, error) from error
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of some ids; bytes that are no UTF-8 become U+FFFD. Errors as for `encode`."""
        try:
            text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        except BaseException as error:
            raise _contradiction(self._path, error) from error
        return text

    def to_json(self) -> str:
        """Return the content of a tokenizer.json that reads text as this one does, the begin-of-sequence id added.

        Raises:
            ModelError: the tokenizer contradicts itself.
        """
        from tokenizers.processors import TemplateProcessing

        try:
            if self.bos_id is not None:
                bos = self._tokenizer.id_to_token(self.bos_id)
                self._tokenizer.post_processor = TemplateProcessing(
                    single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, self.bos_id)]
                )
            content = msgspec.json.decode(self._tokenizer.to_str(), type=dict[str, Any])
        except BaseException as error:
            raise _contradiction(self._path, error) from error
        for added in content["added_tokens"]:
            added["special"] = added["content"] not in self._user_defined
        return msgspec.json.encode(content).decode()


def load_tokenizer(path: Path | str) -> ModelTokenizer:
    """Return the tokenizer of a GGUF file, or the one in a tokenizer.json.

    Raises:
        ModelError: the file is not well-formed, or its tokenizer contradicts itself.
        UnsupportedModel: a kind of tokenizer that is not known here.
    """
    path = Path(path)
    return _from_json(path) if path.suffix == ".json" else tokenizer_of(read_gguf(path))


def _from_json(path: Path) -> ModelTokenizer:
    """Return the tokenizer of a Hugging Face folder; what it puts before a text of its own accord is told by a try."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        alone, begun = (tokenizer.encode("x", add_special_tokens=special).ids for special in (False, True))
    except BaseException as error:
        raise _contradiction(path, error) from error
    before = begun[: max(0, len(begun) - len(alone))]
    bos_id = before[0] if len(before) == 1 and begun[1:] == alone else None
    return ModelTokenizer(path, tokenizer, tokenizer.get_vocab_size(with_added_tokens=True), bos_id)


def tokenizer_of(file: GGUFFile) -> ModelTokenizer:
    """Return the tokenizer of a GGUF file that is already read.

    Raises:
        ModelError: the tokenizer contradicts itself.
        UnsupportedModel: a kind of tokenizer that is not known here.
    """
    kind = file.metadata.get("tokenizer.ggml.model")
    tokens = _list(file, "tokens", str)
    types = _list(file, "token_type", int, len(tokens)) if "tokenizer.ggml.token_type" in file.metadata else []
    try:
        if kind == "gpt2":
            tokenizer = _byte_level(file, tokens)
        elif kind == "llama":
            tokenizer = _sentence_piece(file, tokens, types)
        else:
            msg = f"{file.path}: expected a tokenizer of kind gpt2 or llama, got {short(kind)}"
            raise UnsupportedModel(msg)
        _add_specials(tokenizer, tokens, types)
    except ModelError:
        raise
    except BaseException as error:
        raise _contradiction(file.path, error) from error
    user_defined = frozenset(token for token, t in zip(tokens, types, strict=False) if t == _USER_DEFINED)
    return ModelTokenizer(file.path, tokenizer, len(tokens), _bos_id(file, str(kind), len(tokens)), user_defined)


def _byte_level(file: GGUFFile, tokens: list[str]) -> tokenizers.Tokenizer:
    """Return a byte-level BPE tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pre = str(file.metadata.get("tokenizer.ggml.pre", "default"))
    if pre not in SPLITS:
        near = did_you_mean(pre[:60], SPLITS)
        msg = f"{file.path}: expected a known tokenizer.ggml.pre, got {short(pre)}{near}"
        raise UnsupportedModel(msg)
    merges = [_pair(merge) for merge in _list(file, "merges", str)]
    tokenizer = Tokenizer(models.BPE(_numbered(tokens), merges, ignore_merges=pre in _IGNORE_MERGES))
    splits: list[Any] = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in SPLITS[pre]]
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(file: GGUFFile, tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    """Return a SentencePiece BPE tokenizer; its merges follow from the tokens' scores."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = _list(file, "scores", float, len(tokens))
    ids = _numbered(tokens)
    # Every way to cut a token in two is looked at, and each costs as much as the token is long.
    work = sum(len(token) ** 2 for token in tokens)
    if work > MAX_CUT_CHARACTERS:
        longest = max(map(len, tokens))
        msg = f"{file.path}: expected the tokens of a language, got {len(tokens)} of up to {longest} characters"
        raise ModelError(msg)
    ranked = []
    for token, score in zip(tokens, scores, strict=True):
        ranked += [
            (-score, ids[token[:cut]], ids[token[cut:]])
            for cut in range(1, len(token))
            if token[:cut] in ids and token[cut:] in ids
        ]
    # Best score first; for one token the halves that came first in the vocabulary.
    ranked.sort()
    merges = [(tokens[left], tokens[right]) for _, left, right in ranked]
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


def _add_specials(tokenizer: tokenizers.Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Let control and user-defined tokens be read from text as a whole."""
    from tokenizers import AddedToken

    special = [AddedToken(token, special=True, normalized=False) for token, t in zip(tokens, types, strict=False)
               if t in (_CONTROL, _USER_DEFINED) and token]  # fmt: skip
    tokenizer.add_special_tokens(special)


def _bos_id(file: GGUFFile, kind: str, vocabulary: int) -> int | None:
    """Return the id that every prompt begins with, or None."""
    pre = file.metadata.get("tokenizer.ggml.pre")
    # Without the key, SentencePiece and Llama 3 tokenizers begin with one, the others do not.
    wanted = file.metadata.get("tokenizer.ggml.add_bos_token", kind == "llama" or pre in _IGNORE_MERGES)
    bos = file.metadata.get("tokenizer.ggml.bos_token_id")
    return bos if wanted and type(bos) is int and 0 <= bos < vocabulary else None


def _list(file: GGUFFile, name: str, kind: type, length: int | None = None) -> list[Any]:
    """Return one of the tokenizer's lists, of the given length where there is one."""
    value = file.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not value or not all(isinstance(item, kind) for item in value):
        msg = f"{file.path}: expected a list of {kind.__name__} in 'tokenizer.ggml.{name}', got {short(value)}"
        raise ModelError(msg)
    if length is not None and len(value) != length:
        msg = f"{file.path}: expected {length} items in 'tokenizer.ggml.{name}', one a token, got {len(value)}"
        raise ModelError(msg)
    return value


def _numbered(tokens: list[str]) -> dict[str, int]:
    """Return the ids by token."""
    return {token: index for index, token in enumerate(tokens)}


def _pair(merge: str) -> tuple[str, str]:
    """Return the two halves of a merge, which a space divides."""
    left, _, right = merge.partition(" ")
    return left, right


def _contradiction(path: Path, error: BaseException) -> ModelError:
    """Return the error of a tokenizer that cannot be built or used; other errors are raised as they are.

    The library raises plain Exception for what its Rust side refuses, and what escapes `except Exception` where that
    side panics.
    """
    if type(error) not in (ValueError, TypeError, Exception) and type(error).__name__ != "PanicException":
        raise error
    return ModelError(f"{path}: expected a consistent tokenizer, got: {plain(str(error)) or 'no reason'}")
