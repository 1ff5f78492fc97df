"""Asks for texts, and judges what was committed: every position once, in as many forward passes as were asked for."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from enginecmp import Given
from enginecmp.models.diffusion import mask_of
from enginecmp.models.gguf_file import read_gguf
from enginecmp_diffusion.variant import DENOISE, variant_of

Place = tuple[int, int]
"""(sequence, position)"""


class TextJudge:
    """One cell of the scenario; see `enginecmp.Judge`."""

    def __init__(self, parameters: Mapping[str, Any], given: Given) -> None:
        self._variant, self._given = variant_of(parameters), given
        self._vocabulary = given.model.vocabulary if given.model is not None else 0
        self._mask = mask_of(read_gguf(Path(given.model.path))) if given.model is not None else None
        self._first: dict[Place, int] | None = None

    def question(self) -> tuple[Mapping[str, Any], int]:
        """Return what the driver is given; a call makes the output tokens of all texts.

        The prompts of a batch are one prompt, turned: the same ids, the next text begins further on.

        Raises:
            ValueError: steps and blocks do not share out the cell's output.
        """
        variant, output = self._variant, self._given.output_tokens
        block = variant.block_tokens or output
        if output < 1 or output % block:
            msg = f"expected output_tokens to be whole blocks of {block}, got {output}"
            raise ValueError(msg)
        if variant.decoding == DENOISE and (variant.steps % (output // block) or variant.steps > output):
            msg = (
                f"expected steps to be a multiple of {output // block}, the blocks, and at most {output}, the output "
                f"tokens; got {variant.steps}"
            )
            raise ValueError(msg)
        ids = self._given.token_ids
        turns = [len(ids) * number // variant.batch for number in range(variant.batch)]
        model = self._given.model
        return {
            "decoding": variant.decoding,
            "prompts": [[*ids[turn:], *ids[:turn]] for turn in turns],
            "output_tokens": output,
            "steps": variant.steps,
            "block_tokens": block,
            "architecture": model.architecture if model is not None else "",
        }, output * variant.batch

    def judge(self, answer: Any, seconds: float, marks: Sequence[float]) -> Mapping[str, float]:
        """Return what a text cost, and how much of it is what the first one of this cell was.

        Args:
            answer: a list a forward pass: sequence, position and id of everything that it committed.
            seconds: not needed.
            marks: when each of them was done.

        Raises:
            ValueError: not of that form, another number of passes, one that commits nothing, a place that is none or
                has an id already, a place of a later block, or an id that is none.
        """
        found = self._committed(answer)
        first = self._first = self._first or found
        # One token after the other: the first one is the prompt's pass, which is another length.
        gaps = [later - earlier for earlier, later in pairwise([0.0, *marks])]
        gaps = gaps[1:] if self._variant.decoding != DENOISE and len(gaps) > 1 else gaps
        return {
            "forward_pass_seconds": statistics.median(gaps),
            "tokens_per_forward_pass": len(found) / len(answer),
            "same_ids_share": sum(first[place] == token for place, token in found.items()) / len(found),
        }

    def _committed(self, answer: Any) -> dict[Place, int]:
        if not isinstance(answer, list) or not all(isinstance(one, list) and len(one) % 3 == 0 for one in answer):
            msg = f"expected a list of (sequence, position, id) for each forward pass, got {answer!r:.80}"
            raise ValueError(msg)
        variant, output, prompt = self._variant, self._given.output_tokens, len(self._given.token_ids)
        passes = variant.steps or output
        if len(answer) != passes:
            msg = f"expected {passes} forward passes, got {len(answer)}"
            raise ValueError(msg)
        blocks = output // (variant.block_tokens or output) if variant.decoding == DENOISE else output
        found: dict[Place, int] = {}
        for number, step in enumerate(answer):
            if not step:
                msg = f"expected forward pass {number} to commit something, got nothing"
                raise ValueError(msg)
            begin = prompt + number * blocks // passes * (output // blocks)
            for sequence, position, token in zip(*[iter(step)] * 3, strict=True):
                self._check(sequence, position, token, range(begin, begin + output // blocks), number)
                if (sequence, position) in found:
                    msg = f"expected one id for position {position} of sequence {sequence}, got a second one"
                    raise ValueError(msg)
                found[sequence, position] = token
        if len(found) != output * variant.batch:
            msg = f"expected ids of all {output * variant.batch} positions, got {len(found)}"
            raise ValueError(msg)
        return found

    def _check(self, sequence: int, position: int, token: int, block: range, number: int) -> None:
        if not 0 <= sequence < self._variant.batch or position not in block:
            msg = (
                f"expected forward pass {number} to commit positions {block.start} to {block.stop - 1} of sequences 0 "
                f"to {self._variant.batch - 1}, got position {position} of sequence {sequence}"
            )
            raise ValueError(msg)
        if not 0 <= token < self._vocabulary or (token == self._mask and self._variant.decoding == DENOISE):
            msg = f"expected an id in [0, {self._vocabulary}) that is not the mask, got {token}"
            raise ValueError(msg)
