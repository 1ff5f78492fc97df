"""The servers that `--engines` knows by name: presets.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources

import msgspec

from enginecmp import Preset


@cache
def presets() -> Mapping[str, Preset]:
    """Return every preset by name; a command over several lines is one line."""
    text = resources.files(__package__).joinpath("presets.toml").read_text(encoding="utf-8")
    found = msgspec.convert(tomllib.loads(text), dict[str, Preset])
    return {
        name: msgspec.structs.replace(
            preset, options={key: " ".join(value.split("\n")) for key, value in preset.options.items()}
        )
        for name, preset in found.items()
    }


def of_kind(name: str) -> Preset | None:
    """Return the preset that starts a server of a kind, a key of `kinds.KINDS`; None where there is none."""
    return next((preset for preset in presets().values() if preset.options.get("server") == name), None)
