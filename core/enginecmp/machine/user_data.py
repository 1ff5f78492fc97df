"""Where small facts about this machine are kept from run to run: its noise floor, the settings found by tuning."""

from __future__ import annotations

import os
from pathlib import Path


def data_file(name: str) -> Path:
    """Return the path of a file of ours: beside the model cache when ENGINECMP_CACHE is set, else the user's data."""
    if override := os.environ.get("ENGINECMP_CACHE"):
        return Path(override) / name
    import platformdirs

    return Path(platformdirs.user_data_dir("enginecmp")) / name
