"""Files of the Hugging Face hub, through its own client and cache."""

from __future__ import annotations

from pathlib import Path

from enginecmp.errors import ModelError, UsageError


def hub_file(uri: str, *, fetch: bool) -> Path:
    """Return the local file of "hf:OWNER/REPO/FILE.gguf[@REVISION]".

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
        msg = f"{uri}: expected hf:OWNER/REPO/FILE.gguf[@REVISION]"
        raise UsageError(msg)
    try:
        import huggingface_hub
        from huggingface_hub.utils import logging
    except ImportError as error:
        msg = f"{uri}: expected the hub's client, it is not installed; run pip install 'enginecmp[hub]'"
        raise ModelError(msg) from error
    # Its retries would be told on stderr one by one; what they end in is told below.
    logging.set_verbosity_error()
    try:
        path = huggingface_hub.hf_hub_download(
            f"{parts[0]}/{parts[1]}",
            "/".join(parts[2:]),
            revision=revision or None,
            local_files_only=not fetch,
        )
    except Exception as error:  # the client raises its HTTP library's, its own and OSError
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        msg = f"{uri}: expected the file from the hub, came: {reason}; check the network, or name a local .gguf"
        raise ModelError(msg) from error
    return Path(path)
