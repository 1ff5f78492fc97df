"""Which file an engine is given: a split model as it is or merged, a Hugging Face folder where it reads one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from enginecmp.plugins.plugin import Plugin
from enginecmp.types import ModelInfo

HF_PLACEHOLDER = "{hf_model}"
"""An engine option that holds it (a server's start command) asks for a Hugging Face folder."""


def file_for(
    plugin: Plugin,
    model: ModelInfo,
    say: Callable[[str], None] | None = None,
    *,
    extra: Mapping[str, str] = {},
) -> ModelInfo:
    """Return the model as one engine will load it; the merged file or the folder is made where there is none yet.

    Args:
        plugin: of the engine.
        model: what the run is about.
        say: told when a file is being made.
        extra: the engine's options.

    Raises:
        ModelError: the merged file or the folder cannot be made or written.
    """
    if (plugin.info is not None and plugin.info.reads_hf_folders) or any(HF_PLACEHOLDER in v for v in extra.values()):
        from enginecmp.models.huggingface.stored import with_folder

        return with_folder(model, say=say)
    if model.hf_folder:
        model = msgspec.structs.replace(model, hf_folder="", hf_sha256="", derived="")
    if not model.parts or (plugin.info is not None and plugin.info.reads_split_models):
        return model
    from enginecmp.models.store import merged

    return merged(model, say=say)


def files_of(model: ModelInfo) -> tuple[str, ...]:
    """Return the paths of all weights files that an engine reads, from `file_for`."""
    if model.hf_folder:
        from enginecmp.models.huggingface.folder import read_folder

        return tuple(map(str, read_folder(Path(model.hf_folder)).weights))
    return model.parts or (model.path,)
