"""Masked-diffusion models as files: their mask token, and the same weights as a model that predicts the next token."""

from __future__ import annotations

from pathlib import Path

from enginecmp.errors import ModelError
from enginecmp.models.gguf_file import GGUFFile, read_gguf
from enginecmp.models.gguf_split import SPLIT_KEYS
from enginecmp.models.gguf_write import TensorPlan, field, write_gguf
from enginecmp.models.info import describe
from enginecmp.types import ModelInfo

AUTOREGRESSIVE: dict[str, str] = {"llada": "llama", "dream": "qwen2"}
"""Diffusion architectures by the one that has the same tensors and attends to what came before alone."""


def mask_of(file: GGUFFile) -> int | None:
    """Return the id of a diffusion model's mask token; None for any other model.

    Raises:
        ModelError: a diffusion model that does not tell it.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture not in AUTOREGRESSIVE:
        return None
    mask = file.metadata.get("tokenizer.ggml.mask_token_id")
    if type(mask) is not int or mask < 0:
        msg = (
            f"{file.path}: expected tokenizer.ggml.mask_token_id in the metadata of a '{architecture}' model, got "
            f"{mask!r:.40}; convert the model again"
        )
        raise ModelError(msg)
    return mask


def write_autoregressive(model: ModelInfo, target: Path) -> ModelInfo:
    """Write a diffusion model under the name of the architecture whose tensors it has, weights byte for byte.

    It costs what an autoregressive model of the same shape costs; what it says means nothing, since its weights were
    made for attention in both directions.

    Args:
        model: of an architecture in `AUTOREGRESSIVE`.
        target: the file to write.

    Raises:
        ModelError: another architecture, or the file cannot be written.
    """
    file = read_gguf(model.path)
    old = str(file.metadata["general.architecture"])
    if old not in AUTOREGRESSIVE:
        msg = f"{model.path}: expected a model of {' or '.join(AUTOREGRESSIVE)}, got '{old}'; name a diffusion model"
        raise ModelError(msg)
    new = AUTOREGRESSIVE[old]
    fields = [field("general.architecture", "STRING", new)]
    with file.path.open("rb") as content:
        for key, (start, end) in file.spans.items():
            if key in ("general.architecture", f"{old}.attention.causal", "diffusion.shift_logits", *SPLIT_KEYS):
                continue
            content.seek(start)
            encoded = content.read(end - start)
            if key.startswith(f"{old}."):
                renamed = f"{new}{key.removeprefix(old)}".encode()
                encoded = len(renamed).to_bytes(8, "little") + renamed + encoded[8 + len(key.encode()) :]
            fields.append(encoded)
    sha256 = write_gguf(
        target,
        fields,
        [TensorPlan(name=t.name, shape=t.shape, type=t.type) for t in file.tensors.values()],
        lambda plan: [file.raw(plan.name).tobytes()],
        file.alignment,
    )
    return describe(target, name=f"{model.name} (autoregressive)", sha256=sha256)
