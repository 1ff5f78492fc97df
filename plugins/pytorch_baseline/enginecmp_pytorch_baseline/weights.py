"""From a GGUF file to a `Transformer` with resident weights."""

from __future__ import annotations

import torch

from enginecmp import GGUFFile, UnsupportedModel

from .config import ENGINE, ROPE_TENSORS, ModelConfig
from .model import Transformer, gguf_name


def load_model(
    file: GGUFFile, config: ModelConfig, positions: int, device: torch.device, dtype: torch.dtype
) -> Transformer:
    """Build a model and fill it from its file.

    Each tensor is dequantized to float32 once, then rounded to `dtype` where that is another type. An F32 tensor
    is copied once, out of the page cache: pages mapped from the file could be evicted, or still be on disk when
    the first request comes.

    Args:
        file: the checked GGUF file.
        config: what its metadata says.
        positions: most tokens that a session holds.
        device: where the weights go.
        dtype: type of weights and activations.

    Raises:
        UnsupportedModel: tensors are missing, left over, or have another shape than the metadata says.
    """
    rope_factors = None
    if config.rope is not None and config.rope.factors is not None:
        rope_factors = torch.from_numpy(file.float32(config.rope.factors))
    with torch.device("meta"):
        model = Transformer(config, positions, rope_factors, file.tensors)
    tied = "output.weight" not in file.tensors
    parameters = {
        name: tuple(parameter.shape)
        for name, parameter in model.state_dict().items()
        if not (tied and name == "output.weight")
    }
    _check_tensors(file, config, {gguf_name(name): shape for name, shape in parameters.items()})
    state = {name: torch.from_numpy(file.float32(gguf_name(name))).to(device, dtype) for name in parameters}
    if tied:
        state["output.weight"] = state["token_embd.weight"]
    model.load_state_dict(state, assign=True)
    if tied:
        model.output.weight = model.token_embd.weight  # one parameter; loading made two over one memory
    # What is left to move is the table of the rotary embedding; it stays float32.
    model.to(device)
    model.eval()
    return model


def _check_tensors(file: GGUFFile, config: ModelConfig, expected: dict[str, tuple[int, ...]]) -> None:
    """Hold the file's tensors against the module's: all of them, no others, in their shapes."""
    known = {*expected, *ROPE_TENSORS[config.architecture]}
    missing = [name for name in expected if name not in file.tensors]
    unknown = [name for name in file.tensors if name not in known]
    for name, shape in expected.items():
        if name in file.tensors and file.tensors[name].shape != shape:
            msg = (
                f"{ENGINE}: expected {name} of shape {shape} by the metadata, got {file.tensors[name].shape}; "
                "convert the model again"
            )
            raise UnsupportedModel(msg)
    if missing or unknown:
        got = [f"no {name}" for name in missing[:3]] + [f"also {name}" for name in unknown[:3]]
        msg = (
            f"{ENGINE}: expected the tensors of a dense {config.architecture} model, got "
            f"{', '.join(got)}; this engine would compute something else, leave it out with --engines"
        )
        raise UnsupportedModel(msg)
