from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .config import Config

COMPILED_FOR: str

class Session:
    @property
    def vocabulary(self) -> int: ...
    def reset(self) -> None: ...
    def prefill(self, token_ids: Sequence[int], output_tokens: int) -> int: ...
    def decode(self, n_tokens: int) -> tuple[list[int], list[int]]: ...
    def score(self, token_ids: Sequence[int]) -> bytes: ...
    def metrics(self) -> dict[str, float]: ...
    def close(self) -> None: ...

def load(
    config: Config,
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], NDArray[np.float32]],
    device: str,
    context_tokens: int,
    limit: str,
    prompt_chunk: int,
    fused_attention: bool,
) -> Session: ...
def features() -> list[str]: ...
