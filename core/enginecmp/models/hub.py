"""Files and folders of the Hugging Face hub, through its own client and cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from enginecmp.errors import ModelError, UsageError
from enginecmp.models.gguf_split import part_names


def hub_file(uri: str, *, fetch: bool) -> Path:
    """Return the local file of "hf:OWNER/REPO/FILE.gguf[@REVISION]", the other parts of a split model beside it.

    Args:
        uri: the file on the hub.
        fetch: ask the hub; otherwise only the client's own cache.

    Raises:
        UsageError: not of that form.
        ModelError: no client, no hub, or no such file.
    """
    place, _, revision = uri.removeprefix("hf:").partition("@")
    parts = place.split("/")
    if len(parts) < 3 or not all(parts) or not place.endswith(".gguf"):
        msg = f"{uri}: expected hf:OWNER/REPO/FILE.gguf[@REVISION], or hf:OWNER/REPO[@REVISION] for a folder"
        raise UsageError(msg)
    paths = _asked(
        uri,
        lambda hub: {
            name: hub.hf_hub_download(
                f"{parts[0]}/{parts[1]}",
                "/".join([*parts[2:-1], name]),
                revision=revision or None,
                local_files_only=not fetch,
            )
            for name in part_names(parts[-1])
        },
        kind="file",
        fix="check the network, or name a local .gguf",
    )
    return Path(paths[parts[-1]])


def is_folder(uri: str) -> bool:
    """Say whether a URI means a whole repository: "hf:OWNER/REPO[@REVISION]"."""
    parts = uri.removeprefix("hf:").partition("@")[0].split("/")
    return len(parts) == 2 and all(parts) and not parts[1].endswith((".gguf", ".safetensors"))


def hub_folder(uri: str, *, fetch: bool) -> Path:
    """Return the local folder of "hf:OWNER/REPO[@REVISION]": configuration, tokenizer and safetensors, no pickles.

    Args:
        uri: the repository on the hub.
        fetch: ask the hub; otherwise only the client's own cache.

    Raises:
        ModelError: no client, no hub, or no such repository.
    """
    place, _, revision = uri.removeprefix("hf:").partition("@")
    path = _asked(
        uri,
        lambda hub: hub.snapshot_download(
            place,
            revision=revision or None,
            local_files_only=not fetch,
            allow_patterns=["*.json", "*.safetensors", "*.jinja"],
            ignore_patterns=["*/*"],
        ),
        kind="folder",
        fix="check the network, or name a local one",
    )
    return Path(path)


def _asked(uri: str, question: Callable[[Any], Any], *, kind: str, fix: str) -> Any:
    """Return the client's answer, or raise what it says in one line."""
    try:
        import huggingface_hub
        from huggingface_hub.utils import logging
    except ImportError as error:
        msg = f"{uri}: expected the hub's client, it is not installed; run pip install 'enginecmp[hub]'"
        raise ModelError(msg) from error
    # Its retries would be told on stderr one by one; what they end in is told below.
    logging.set_verbosity_error()
    try:
        return question(huggingface_hub)
    except Exception as error:  # the client raises its HTTP library's, its own and OSError
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        msg = f"{uri}: expected the {kind} from the hub, got: {reason}; {fix}"
        raise ModelError(msg) from error
