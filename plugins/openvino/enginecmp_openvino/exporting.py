"""A Hugging Face folder as OpenVINO models, by optimum-intel, in a process of its own and kept by its hash.

`python -m enginecmp_openvino.exporting FOLDER TARGET WEIGHTS`. A process of its own, so that PyTorch, which exports, is
not in the memory of the engine that is measured.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from enginecmp.plugin_tools import exporting

from .name import ENGINE

MODEL = "openvino_model.xml"
"""As it is exported, with logits at every position; not kept."""

LAST = "last.xml"
"""With logits at the last position only, which is all that generating takes."""


def exported(folder: str, sha256: str, weights: str) -> Path:
    """Return the export of a folder, made where there is none yet.

    Args:
        folder: the Hugging Face folder.
        sha256: of it; names the export, together with the exporter's versions.
        weights: "fp32" or "int8".

    Raises:
        UnsupportedModel: it cannot be exported.
    """

    def command(target: Path) -> list[str]:
        return [sys.executable, "-P", "-m", "enginecmp_openvino.exporting", folder, str(target), weights]

    key = "-".join((sha256, weights, *(metadata.version(name) for name in ("openvino", "optimum-intel"))))
    return exporting.exported(ENGINE, "optimum-intel", folder, key=key, needs=LAST, command=command)


def export(folder: Path, target: Path, weights: str) -> None:
    """Write the model of a folder.

    Args:
        folder: the Hugging Face folder.
        target: an empty folder.
        weights: "fp32" or "int8".
    """
    import torch
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    main_export(
        str(folder),
        target,
        task="text-generation-with-past",
        library_name="transformers",
        local_files_only=True,
        trust_remote_code=False,
        stateful=True,
        ov_config=OVConfig(dtype="fp32"),
        model_loading_kwargs={"dtype": torch.float32},
    )
    write_for_generating(target / MODEL, target / LAST, weights)
    for suffix in (".xml", ".bin"):
        (target / MODEL).with_suffix(suffix).unlink()


def write_for_generating(source: Path, target: Path, weights: str) -> None:
    """Write a model again with the last position's hidden state alone going into the head, its weights compressed.

    The first is what openvino_genai does when it loads a model: a prompt's other logits are read by nobody. The second
    is nncf's INT8_ASYM (a scale and a zero point a row, embedding and head included), optimum-intel's 8-bit setting.

    Args:
        source: as it was exported.
        target: the model to write.
        weights: "fp32" or "int8".
    """
    import openvino
    from openvino import opset13

    model = openvino.Core().read_model(source)
    node = model.output("logits").node.input_value(0).node
    while node.get_type_name() not in ("MatMul", "Result"):
        node = node.input_value(0).node  # scalings and conversions behind the head
    hidden: Any = node.input_value(0)  # (1, T, width)
    last = opset13.slice(hidden, [-1], [2**31 - 1], [1], [1])
    node.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()
    if weights == "int8":
        import nncf

        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    openvino.save_model(model, target, compress_to_fp16=False)


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
