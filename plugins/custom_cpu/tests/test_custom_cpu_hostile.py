"""Damaged files are refused or computed with, in this very process: a crash would be the end of the tests."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from enginecmp import EngineError, ModelInfo, UnsupportedModel, read_gguf
from enginecmp.testing.tiny_models import TOKEN_IDS
from enginecmp_custom_cpu import cmp_decode, cmp_prefill, cmp_reset, cmp_score

Tiny = Callable[..., ModelInfo]
COUNT = int(os.environ.get("ENGINECMP_FUZZ", "300"))
EDGES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
WIDE = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def damaged(content: bytes, header_bytes: int, draw: random.Random) -> bytes:
    """Change some bytes, most of them in the header, where numbers are read as 8 bytes; or cut the end off."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        kind = draw.random()
        if kind < 0.5:
            changed[draw.randrange(header_bytes)] = draw.choice([*EDGES, draw.randrange(256)])
        elif kind < 0.9:
            at = draw.randrange(header_bytes - 8)
            changed[at : at + 8] = struct.pack("<Q", draw.choice(WIDE))
        else:
            at = draw.randrange(len(changed))
            changed[at : at + 4] = draw.randbytes(4)
    return bytes(changed[: draw.randrange(len(changed))]) if draw.random() < 0.1 else bytes(changed)


@pytest.mark.parametrize(("architecture", "kind"), [("llama", "Q8_0"), ("phi3", "F32"), ("gpt2", "Q4_0")])
def test_damaged_files_are_refused_or_computed_with(
    architecture: str, kind: str, tiny: Tiny, load: Any, tmp_path: Path
) -> None:
    model = tiny(architecture, kind)
    content = Path(model.path).read_bytes()
    file = read_gguf(model.path)
    # What follows the vocabulary: keys of the architecture may come first or last, tensors are at the end.
    header_bytes = len(content) - sum(tensor.nbytes for tensor in file.tensors.values())
    path = tmp_path / "damaged.gguf"
    loaded = refused = 0
    for number in range(COUNT // 3):
        draw = random.Random(f"{architecture} {number}")
        path.write_bytes(damaged(content, header_bytes, draw))
        try:
            session = load(msgspec.structs.replace(model, path=str(path)), context_tokens=80)
            cmp_score(session, TOKEN_IDS[:20])
            cmp_prefill(session, TOKEN_IDS[:3], 3)
            assert all(0 <= token < model.vocabulary * 2 for token in cmp_decode(session, 2))
            cmp_reset(session)
            loaded += 1
        except (UnsupportedModel, EngineError, MemoryError) as error:
            message = str(error)
            assert "panicked" not in message, message
            assert message.isprintable(), message
            assert message.startswith("custom_cpu: ")
            refused += 1
    assert loaded > 0
    assert refused > 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
def test_weights_that_are_no_numbers_give_ids_all_the_same(value: float, tiny: Tiny, load: Any, tmp_path: Path) -> None:
    model = tiny("llama")
    content = bytearray(Path(model.path).read_bytes())
    content[-4000:] = np.full(1000, value, np.float32).tobytes()
    path = tmp_path / "wild.gguf"
    path.write_bytes(bytes(content))
    session = load(msgspec.structs.replace(model, path=str(path)), extra={"lookup": "1"})
    ids = [cmp_prefill(session, TOKEN_IDS, 9), *cmp_decode(session, 8)]
    assert all(0 <= token < model.vocabulary for token in ids)


def test_a_file_that_was_cut_anywhere_is_refused(tiny: Tiny, load: Any, tmp_path: Path) -> None:
    model = tiny("llama")
    content = Path(model.path).read_bytes()
    path = tmp_path / "cut.gguf"
    for end in [*range(0, 200, 7), *range(200, len(content), len(content) // 60), len(content) - 1]:
        path.write_bytes(content[:end])
        with pytest.raises(UnsupportedModel, match="got: "):
            load(msgspec.structs.replace(model, path=str(path)))
