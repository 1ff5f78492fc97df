"""The host's tokenizer in its own process: the same answers, and nothing a file does reaches the host."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from enginecmp.errors import ModelError, UnsupportedModel
from enginecmp.models import isolated_tokenizer, tokenizer_server
from enginecmp.models.gguf_file import read_gguf
from enginecmp.models.gguf_write import field, write_gguf
from enginecmp.models.isolated_tokenizer import IsolatedTokenizer
from enginecmp.models.tokenizer import load_tokenizer
from enginecmp.prompts import corpus
from enginecmp.types import ModelInfo


@pytest.fixture
def tokenizer(tiny: ModelInfo) -> Iterator[IsolatedTokenizer]:
    tokenizer = IsolatedTokenizer(tiny.path)
    yield tokenizer
    tokenizer._end()


def child(tokenizer: IsolatedTokenizer) -> psutil.Process:
    return psutil.Process(tokenizer._process.pid)


def changed(source: str, target: Path, replaced: dict[str, bytes]) -> Path:
    content = Path(source).read_bytes()
    fields = {key: content[start:end] for key, (start, end) in read_gguf(source).spans.items()}
    write_gguf(target, list((fields | replaced).values()), [], lambda plan: [])
    return target


def test_answers_are_those_of_the_tokenizer_in_this_process(tokenizer: IsolatedTokenizer, tiny: ModelInfo) -> None:
    here = load_tokenizer(tiny.path)
    assert (tokenizer.vocabulary, tokenizer.bos_id) == (here.vocabulary, here.bos_id)
    for text in ("", "line\nbreak \x1b żółw \u2028 👍", *corpus().values()):
        ids = tokenizer.encode(text)
        assert ids == here.encode(text)
        assert tokenizer.decode(ids) == here.decode(ids) == text


def test_process_ends_with_the_tokenizer(tiny: ModelInfo) -> None:
    tokenizer = IsolatedTokenizer(tiny.path)
    process = child(tokenizer)
    del tokenizer
    assert not process.is_running()


def test_ctrl_c_is_the_hosts_to_handle(tokenizer: IsolatedTokenizer) -> None:
    os.kill(child(tokenizer).pid, signal.SIGINT)
    assert tokenizer.decode(tokenizer.encode("still here")) == "still here"


def test_killed_process_is_one_line_and_stays_so(tokenizer: IsolatedTokenizer) -> None:
    os.kill(child(tokenizer).pid, signal.SIGKILL)
    with pytest.raises(ModelError, match="its process ended with SIGKILL"):
        tokenizer.encode("x")
    with pytest.raises(ModelError, match="its process has ended"):
        tokenizer.encode("x")


def test_limits_are_set_in_the_process(tokenizer: IsolatedTokenizer) -> None:
    assert child(tokenizer).rlimit(psutil.RLIMIT_AS)[0] == tokenizer_server.MEMORY_BYTES
    soft = child(tokenizer).rlimit(psutil.RLIMIT_CPU)[0]
    assert 0 < soft <= 60 + tokenizer_server.CPU_SECONDS


def test_silent_process_is_ended_at_the_deadline(tokenizer: IsolatedTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    os.kill(child(tokenizer).pid, signal.SIGSTOP)
    monkeypatch.setattr(isolated_tokenizer, "DEADLINE_SECONDS", 0.05)
    with pytest.raises(ModelError, match=r"no answer within 0\.05 s"):
        tokenizer.encode("x")


def test_memory_beyond_the_limit_is_one_line(tokenizer: IsolatedTokenizer) -> None:
    held = child(tokenizer).memory_info().vms
    child(tokenizer).rlimit(psutil.RLIMIT_AS, (held + 2**22, held + 2**22))
    with pytest.raises(ModelError, match=r"its process ended with SIGABRT|needs more than 2 GiB"):
        tokenizer.encode("a few more words than it can hold " * 300_000)


def test_unsupported_kinds_keep_their_class_and_words(tiny: ModelInfo, tmp_path: Path) -> None:
    kind = {"tokenizer.ggml.model": field("tokenizer.ggml.model", "STRING", "bert\x1b[2J")}
    with pytest.raises(UnsupportedModel, match=r"gpt2 or llama, got 'bert\\x1b\[2J'"):
        IsolatedTokenizer(changed(tiny.path, tmp_path / "a.gguf", kind))


def test_panic_of_the_library_prints_nothing(
    tiny: ModelInfo, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Tokens cut to 200, the types with them: merges lead to tokens that are not there."""
    metadata = read_gguf(tiny.path).metadata
    cut = {
        f"tokenizer.ggml.{name}": field(f"tokenizer.ggml.{name}", kind, metadata[f"tokenizer.ggml.{name}"][:200])
        for name, kind in (("tokens", "STRING"), ("token_type", "INT32"))
    }
    with pytest.raises(ModelError, match="expected a consistent tokenizer"):
        IsolatedTokenizer(changed(tiny.path, tmp_path / "cut.gguf", cut))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "tokens", [["<unk>", "a", "aa", "a" * 4_000_000], ["<unk>", *("a" * n for n in range(1, 3000))]]
)
def test_long_and_nested_tokens_are_refused(tokens: list[str], tiny: ModelInfo, tmp_path: Path) -> None:
    replaced = {
        "tokenizer.ggml.model": field("tokenizer.ggml.model", "STRING", "llama"),
        "tokenizer.ggml.tokens": field("tokenizer.ggml.tokens", "STRING", tokens),
        "tokenizer.ggml.token_type": field("tokenizer.ggml.token_type", "INT32", [1] * len(tokens)),
        "tokenizer.ggml.scores": field("tokenizer.ggml.scores", "FLOAT32", [0.0] * len(tokens)),
    }
    with pytest.raises(ModelError, match="expected the tokens of a language"):
        IsolatedTokenizer(changed(tiny.path, tmp_path / "long.gguf", replaced))
