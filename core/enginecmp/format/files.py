"""Names of the files in a run's folder."""

from __future__ import annotations

from pathlib import Path

MANIFEST = "manifest.json"
SAMPLES = "samples.jsonl"
LAUNCHES = "launches.jsonl"
CALIBRATION = "calibration.jsonl"
TELEMETRY = "telemetry.jsonl"
RESUME = "resume.json"
LOGS = "logs"


def in_run(path: Path) -> str:
    """Return how notes name a file of a run: behind its folder's name, without what lies above on this machine."""
    return f"{path.parent.resolve().name}/{path.name}"
