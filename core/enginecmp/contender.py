"""An engine of a run, ready to be launched."""

from __future__ import annotations

import msgspec

from enginecmp.plugins import Plugin
from enginecmp.types import UNTIMED_DEVICES, LoadOptions


class Contender(msgspec.Struct, frozen=True):
    """One engine of a run, ready to be launched.

    Attributes:
        label: its name in the run.
        plugin: where it lives.
        options: what it is loaded with.
        tuned: "tuned" where the options hold what `cmp tune` stored for it, else "default".
    """

    label: str
    plugin: Plugin
    options: LoadOptions
    tuned: str = "default"

    @property
    def engine_version(self) -> str:
        """Version of the wrapped engine."""
        assert self.plugin.info is not None
        return self.plugin.info.version

    @property
    def timed(self) -> bool:
        """Whether its times mean anything on the device that it is loaded on."""
        return self.options.device not in UNTIMED_DEVICES
