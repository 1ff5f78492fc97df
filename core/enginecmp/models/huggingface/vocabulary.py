"""A tokenizer.json as GGUF metadata: byte-level BPE and SentencePiece BPE.

Which splitting rules a tokenizer.json spells out, GGUF names by one word; the word is found by the rules and proven by
texts (`proof`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import UnsupportedModel
from enginecmp.format.text import plain
from enginecmp.models.gguf_write import field
from enginecmp.models.huggingface.folder import MAX_JSON_BYTES, TOKENIZER, HFFolder, read_object
from enginecmp.models.huggingface.refusal import refuse
from enginecmp.models.paths import require_regular
from enginecmp.models.tokenizer import SPLITS

# Token types of GGUF.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


class _Added(msgspec.Struct):
    """A token that is read from text as a whole."""

    id: int
    content: str
    special: bool = False


class _Model(msgspec.Struct):
    """The part of a tokenizer.json that holds the vocabulary."""

    vocab: dict[str, int]
    merges: list[str | tuple[str, str]]
    type: str | None = None
    unk_token: str | None = None
    byte_fallback: bool = False
    ignore_merges: bool = False


class _TokenizerFile(msgspec.Struct):
    """What is read of a tokenizer.json."""

    model: _Model
    added_tokens: list[_Added] = []
    normalizer: Any = None
    pre_tokenizer: Any = None


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """A tokenizer as GGUF has it, the splitting rules still to be named.

    Attributes:
        kind: "gpt2" (byte-level BPE) or "llama" (SentencePiece BPE).
        tokens, types: one entry an id.
        merges: of byte-level BPE, two halves with a space between.
        scores: of SentencePiece, one an id; the better one is merged first.
        rules: names of splitting rules that may be the file's, the likeliest first; [""] of SentencePiece.
        space_prefix: text begins with a space (SentencePiece).
    """

    kind: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    rules: list[str]
    space_prefix: bool


def read_vocabulary(folder: HFFolder, rows: int) -> Vocabulary:
    """Return the tokenizer of a folder.

    Args:
        folder: the checked folder.
        rows: of the embedding; ids without a token get one that no text has.

    Raises:
        ModelError: it is missing, malformed, or has more tokens than the embedding has rows.
        UnsupportedModel: a kind of tokenizer that GGUF files here cannot hold.
    """
    path = folder.path / TOKENIZER
    content = _read(path)
    model = content.model
    if model.type not in (None, "BPE"):
        msg = f"{path}: expected a tokenizer of kind BPE, got '{plain(str(model.type), 40)}'"
        raise UnsupportedModel(msg)
    by_id: dict[int, str] = {}
    for token, number in [*model.vocab.items(), *((added.content, added.id) for added in content.added_tokens)]:
        if not 0 <= number < rows:
            refuse(path, f"token ids below {rows}, the rows of the embedding", f"{number} of '{plain(token, 40)}'")
        by_id[number] = token
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(rows)]
    kinds = {added.content: CONTROL if added.special else USER_DEFINED for added in content.added_tokens}
    sentence_piece = model.byte_fallback or "▁" in str(content.normalizer) or _has(content.pre_tokenizer, "Metaspace")
    if sentence_piece:
        kinds |= {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    if model.unk_token is not None and sentence_piece:
        kinds[model.unk_token] = UNKNOWN
    types = [kinds.get(by_id[number], NORMAL) if number in by_id else UNUSED for number in range(rows)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.merges]
    if any(merge.count(" ") != 1 for merge in merges):
        refuse(path, "merges of two halves", "one of another form")
    return Vocabulary(
        kind="llama" if sentence_piece else "gpt2",
        tokens=tokens,
        types=types,
        merges=[] if sentence_piece else merges,
        scores=_scores(tokens, merges) if sentence_piece else [],
        rules=[""] if sentence_piece else _rules(content),
        space_prefix=_has(content.normalizer, "Prepend") or _prepends(content.pre_tokenizer),
    )


def vocabulary_fields(vocabulary: Vocabulary, rule: str) -> list[bytes]:
    """Return a tokenizer as GGUF metadata, without its special ids.

    Args:
        vocabulary: from `read_vocabulary`.
        rule: one of its `rules`.
    """
    fields = [
        field("tokenizer.ggml.model", "STRING", vocabulary.kind),
        field("tokenizer.ggml.tokens", "STRING", vocabulary.tokens),
        field("tokenizer.ggml.token_type", "INT32", vocabulary.types),
    ]
    if vocabulary.kind == "gpt2":
        fields.append(field("tokenizer.ggml.merges", "STRING", vocabulary.merges))
        fields.append(field("tokenizer.ggml.pre", "STRING", rule))
    else:
        fields.append(field("tokenizer.ggml.scores", "FLOAT32", vocabulary.scores))
        fields.append(field("tokenizer.ggml.pre", "STRING", "default"))
        fields.append(field("tokenizer.ggml.add_space_prefix", "BOOL", vocabulary.space_prefix))
    return fields


def special_fields(folder: HFFolder, vocabulary: Vocabulary, bos_id: int | None) -> list[bytes]:
    """Return special ids and the chat template as GGUF metadata.

    Args:
        folder: the checked folder.
        vocabulary: of it.
        bos_id: what the tokenizer puts before every text, or None.
    """
    generation = _optional(folder.path / "generation_config.json")
    tokenizer = _optional(folder.path / "tokenizer_config.json")
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    fields = []
    for name in ("bos", "eos", "pad", "unk"):
        found = [generation.get(f"{name}_token_id"), folder.config.get(f"{name}_token_id")]
        spelled = tokenizer.get(f"{name}_token")
        spelled = spelled.get("content") if isinstance(spelled, dict) else spelled
        found = [ids.get(spelled) if isinstance(spelled, str) else None, *found]
        if name == "bos" and bos_id is not None:
            found = [bos_id]
        numbers = [value[0] if isinstance(value, list) and value else value for value in found]
        number = next((value for value in numbers if type(value) is int and 0 <= value < len(ids)), None)
        if number is not None:
            key = "unknown" if name == "unk" else "padding" if name == "pad" else name
            fields.append(field(f"tokenizer.ggml.{key}_token_id", "UINT32", number))
    fields.append(field("tokenizer.ggml.add_bos_token", "BOOL", bos_id is not None))
    fields.append(field("tokenizer.ggml.add_eos_token", "BOOL", False))
    template = tokenizer.get("chat_template")
    beside = folder.path / "chat_template.jinja"
    if beside.is_file() and beside.stat().st_size < 2**20:
        template = beside.read_text("utf-8", "replace")
    if isinstance(template, str):
        fields.append(field("tokenizer.chat_template", "STRING", template))
    return fields


def _read(path: Path) -> _TokenizerFile:
    if not path.is_file():
        fix = "; save it with transformers' AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        refuse(path.parent, f"a {TOKENIZER}", f"none{fix}")
    if (size := require_regular(path, "JSON")) > MAX_JSON_BYTES[TOKENIZER]:
        refuse(path, f"at most {MAX_JSON_BYTES[TOKENIZER]} bytes", f"{size}")
    try:
        return msgspec.json.decode(path.read_bytes(), type=_TokenizerFile)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        refuse(path, "a tokenizer of kind BPE", plain(str(error)))


def _optional(path: Path) -> dict[str, Any]:
    """Return the object in a file, an empty one where there is no file."""
    return read_object(path) if path.is_file() else {}


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Return SentencePiece scores under which the same pairs are merged in the same order.

    SentencePiece merges the pair whose result has the best score; a tokenizer.json lists pairs in that order.
    """
    rank: dict[str, int] = {}
    for merge in merges:
        rank.setdefault(merge.replace(" ", ""), len(rank))
    return [-float(rank.get(token, len(rank))) for token in tokens]


def _rules(content: _TokenizerFile) -> list[str]:
    """Return the names of all splitting rules, those first that read as the file's own."""
    found = tuple(_regexes(content.pre_tokenizer))
    same = [name for name, rules in SPLITS.items() if rules == found]
    return [*same, *(name for name in SPLITS if name not in same)]


def _regexes(pre: Any) -> Iterator[str]:
    """Yield the regular expressions that a pre-tokenizer cuts text with, in order."""
    for step in _steps(pre):
        match step.get("type"):
            case "Split" if isinstance(step.get("pattern"), dict):
                yield str(step["pattern"].get("Regex", step["pattern"].get("String")))
            case "Digits":
                yield r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
            case "ByteLevel" if step.get("use_regex", True):
                yield SPLITS["gpt-2"][0]


def _steps(part: Any) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, one level of `Sequence` opened."""
    if not isinstance(part, dict):
        return []
    inner = part.get("pretokenizers", part.get("normalizers"))
    steps = inner if part.get("type") == "Sequence" and isinstance(inner, list) else [part]
    return [step for step in steps if isinstance(step, dict)]


def _has(part: Any, kind: str) -> bool:
    return any(step.get("type") == kind for step in _steps(part))


def _prepends(pre: Any) -> bool:
    """Say whether a Metaspace puts a space before text."""
    found = [step for step in _steps(pre) if step.get("type") == "Metaspace"]
    return any(step.get("prepend_scheme", "always") != "never" for step in found)
