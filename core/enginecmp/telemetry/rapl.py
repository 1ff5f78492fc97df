"""Energy of the processor through RAPL, where the kernel shows it and lets this user read it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from enginecmp.errors import SensorAbsent

_KINDS = {"package": "cpu_energy_joules", "dram": "dram_energy_joules"}
"""How a domain's name begins → the value that it counts into. Cores and graphics are part of a package."""


class _Domain:
    """One counter of microjoules that starts again from 0 at its range."""

    def __init__(self, folder: Path) -> None:
        self.range = int((folder / "max_energy_range_uj").read_text())
        self.file = os.open(folder / "energy_uj", os.O_RDONLY | os.O_CLOEXEC)
        self.last = self.counter()
        self.joules = 0.0

    def counter(self) -> int:
        return int(os.pread(self.file, 32, 0))

    def advance(self) -> float:
        """Return the joules since the start, the wrap-around taken out."""
        now = self.counter()
        self.joules += (now - self.last if now >= self.last else now - self.last + self.range) / 1e6
        self.last = now
        return self.joules


class RaplSensor:
    """Reads the energy counters of all packages.

    Args:
        root: where /sys is.
    """

    name = "rapl"
    period_seconds = 0.5

    def __init__(self, root: Path = Path("/")) -> None:
        self._folder = root / "sys/class/powercap"
        self._domains: dict[str, list[_Domain]] = {}

    def start(self) -> Mapping[str, object]:
        """Open the counters.

        Raises:
            SensorAbsent: there are none, or this user may not read them.
        """
        names = []
        for folder in sorted(self._folder.glob("*-rapl:*")):
            try:
                name = (folder / "name").read_text().strip()
            except OSError:
                continue
            for kind, value in _KINDS.items():
                if name.startswith(kind):
                    try:
                        self._domains.setdefault(value, []).append(_Domain(folder))
                    except PermissionError as error:
                        self.close()
                        msg = (
                            f"rapl: this user may not read {folder}/energy_uj; "
                            f"allow it with: sudo chmod a+r {self._folder}/*/energy_uj"
                        )
                        raise SensorAbsent(msg) from error
                    except (OSError, ValueError) as error:
                        self.close()
                        msg = f"rapl: {folder}/energy_uj cannot be read: {error}"
                        raise SensorAbsent(msg) from error
                    names.append(name)
        if "cpu_energy_joules" not in self._domains:
            self.close()
            msg = f"rapl: no counter of a package in {self._folder}; virtual machines have none, nothing fixes that"
            raise SensorAbsent(msg)
        return {"domains": names}

    def read(self, pids: Sequence[int]) -> tuple[Mapping[str, float], Sequence[str]]:
        """Return the joules since the start; a counter wraps after minutes at the earliest."""
        try:
            return {value: sum(domain.advance() for domain in some) for value, some in self._domains.items()}, []
        except OSError as error:
            msg = f"rapl: the counters cannot be read any more: {error.strerror or error}"
            raise SensorAbsent(msg) from error

    def close(self) -> None:
        """Close the counters."""
        for some in self._domains.values():
            for domain in some:
                os.close(domain.file)
        self._domains = {}
