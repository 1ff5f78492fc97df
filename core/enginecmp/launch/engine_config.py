"""An engine of a run, ready to be launched."""

from __future__ import annotations

import msgspec

from enginecmp.plugins.plugin import Plugin
from enginecmp.types import UNTIMED_DEVICES, LoadOptions, Probe


class EngineConfig(msgspec.Struct, frozen=True):
    """One engine of a run, ready to be launched.

    Attributes:
        label: its name in the run.
        plugin: where it lives.
        options: what it is loaded with.
        tuned: "tuned" where the options hold what `cmp tune` stored for it, else "default".
        probed: what it said when it was asked whether it can run.
    """

    label: str
    plugin: Plugin
    options: LoadOptions
    tuned: str = "default"
    probed: Probe = Probe(ok=True)

    @property
    def engine_version(self) -> str:
        """Version of the wrapped engine: what it told when asked, else that of its plugin's facts."""
        assert self.plugin.info is not None
        return self.probed.version or self.plugin.info.version

    @property
    def remote(self) -> bool:
        """Whether it computes elsewhere than in its worker."""
        return self.plugin.info is not None and self.plugin.info.remote

    @property
    def timed(self) -> bool:
        """Whether its times mean anything on the device that it is loaded on."""
        return self.options.device not in UNTIMED_DEVICES
