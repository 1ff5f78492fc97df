from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from enginecmp.models.decoder import DecoderConfig
from enginecmp.plugin_tools.rust_plugin import RustSession

COMPILED_FOR: str

def load(
    config: DecoderConfig,
    frequencies: Sequence[float],
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], NDArray[np.float32]],
    device: str,
    context_tokens: int,
    limit: str,
    prompt_chunk: int,
    fused_attention: bool,
) -> RustSession: ...
def features() -> list[str]: ...
