"""What plugins share whose engine reads Hugging Face folders (`EngineInfo.reads_hf_folders`)."""

from __future__ import annotations

from enginecmp.errors import EngineError
from enginecmp.types import ModelInfo

QUANTIZATIONS = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS"),
)
"""What the host dequantizes into a folder."""


def folder_of(engine: str, model: ModelInfo) -> str:
    """Return the model's folder.

    Args:
        engine: its name, for errors.
        model: what `cmp_load` was given.

    Raises:
        EngineError: the host gave none.
    """
    if not model.hf_folder:
        msg = f"{engine}: expected a Hugging Face folder from the host, got none; update enginecmp"
        raise EngineError(msg)
    return model.hf_folder
