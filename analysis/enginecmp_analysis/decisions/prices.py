"""Prices as people write them: "2.49/h" on the command line, or a file with one an engine or device."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from enginecmp.errors import UsageError, did_you_mean
from enginecmp.format.documents import named_by_user, read_toml, require_known
from enginecmp.format.records import Manifest, RunEngine
from enginecmp.types import Device

_KEYS = ("currency", "electricity_per_kwh", "per_hour")

_DEVICES: tuple[str, ...] = get_args(Device)

_SIGN = r"(?P<{0}>[A-Z]{{3}}|[$€£¥₹])?"
_AMOUNT = r"(?P<amount>\d+(?:\.\d*)?|\.\d+)"
_RATE = re.compile(rf"{_SIGN.format('before')}\s*{_AMOUNT}\s*{_SIGN.format('after')}\s*/\s*(?P<unit>\w+)")

_PER_SECOND = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}


@dataclass(frozen=True, slots=True)
class Prices:
    """What machines and energy cost.

    Attributes:
        currency: sign or code, "" when none was given.
        everything: price per hour of any machine; None with a file.
        per_hour: label of an engine, name of a CPU or GPU, or device ("cpu", "cuda") → price per hour.
        electricity_per_kwh: price of energy, None when it is not asked for.
        source: the file, or the option as given.
    """

    currency: str
    everything: float | None = None
    per_hour: Mapping[str, float] = field(default_factory=dict)
    electricity_per_kwh: float | None = None
    source: str = "--price"

    def of(self, engine: RunEngine, manifest: Manifest) -> float:
        """Return the price per hour of the machine that an engine ran on.

        The engine's label goes before the name of its CPU or GPU, and that before the kind of device.

        Raises:
            UsageError: the file names none of them.
        """
        if self.everything is not None:
            return self.everything
        names = _names(engine, manifest)
        for name in names:
            if name in self.per_hour:
                return self.per_hour[name]
        hint = next((h for name in names if "did you mean" in (h := did_you_mean(name, self.per_hour))), "")
        hint = hint or f"; the file knows: {', '.join(self.per_hour)}"
        msg = f"{self.source}: expected a price in [per_hour] for {' or '.join(repr(n) for n in names)}, got none{hint}"
        raise UsageError(msg)

    def refuse_misspelt(self, manifests: Iterable[Manifest]) -> None:
        """Refuse a name that is none of these runs but looks like one; a price list may name machines beyond them.

        Raises:
            UsageError: names the nearest right one.
        """
        known = {name for m in manifests for engine in m.engines for name in _names(engine, m)} | set(_DEVICES)
        for name in self.per_hour:
            hint = "" if name in known else did_you_mean(name, known)
            if "did you mean" in hint:
                msg = f"{self.source}: unknown name '{name}' in [per_hour]{hint}"
                raise UsageError(msg)


def _names(engine: RunEngine, manifest: Manifest) -> list[str]:
    hardware = manifest.environment.get("cpu" if engine.device == "cpu" else "gpu")
    return [engine.name, *([hardware] if isinstance(hardware, str) and hardware else []), engine.device]


def parse_amount_per_hour(text: str, option: str) -> tuple[float, str]:
    """Read an amount per hour like "2.49/h", "$2.49/hour" or "EUR 1.10/h"; return it and the currency.

    Raises:
        UsageError: it is not of that form.
    """
    form = _RATE.fullmatch(text.strip())
    if form is None or form["unit"] not in ("h", "hour") or (form["before"] and form["after"]):
        msg = f"{option}: expected an amount per hour like 2.49/h or EUR 2.49/h, got '{text}'"
        raise UsageError(msg)
    amount = float(form["amount"])
    if amount <= 0:
        msg = f"{option}: expected an amount above zero, got '{text}'"
        raise UsageError(msg)
    return amount, form["before"] or form["after"] or ""


def parse_demand(text: str) -> float:
    """Read requests per time like "12/s", "90/min" or "4000/h"; return requests per second.

    Raises:
        UsageError: it is not of that form.
    """
    form = _RATE.fullmatch(text.strip())
    if form is None or form["before"] or form["after"] or form["unit"] not in _PER_SECOND or not float(form["amount"]):
        msg = f"--demand: expected requests per time like 12/s, 90/min or 4000/h, got '{text}'"
        raise UsageError(msg)
    return float(form["amount"]) / _PER_SECOND[form["unit"]]


def read_prices(text: str) -> Prices:
    """Return prices from an amount per hour, or from the TOML file that is named.

    Raises:
        UsageError: neither of them, a wrong key, or a price that is no positive number.
    """
    if not text.endswith(".toml"):
        amount, currency = parse_amount_per_hour(text, "--price")
        return Prices(currency, everything=amount, source="--price")
    with named_by_user("prices", text):
        content = read_toml(Path(text))
    return _from_file(content, f"prices {text}")


def _from_file(content: dict[str, Any], where: str) -> Prices:
    require_known(content, _KEYS, where)
    table, currency = content.get("per_hour"), content.get("currency", "")
    if not isinstance(table, dict) or not table:
        msg = f"{where}: expected a [per_hour] table with at least one price, got {table!r}"
        raise UsageError(msg)
    if not isinstance(currency, str):
        msg = f'{where}: expected currency = "EUR" or the like, got {currency!r}'
        raise UsageError(msg)
    electricity = content.get("electricity_per_kwh")
    return Prices(
        currency,
        per_hour={name: _positive(value, f"per_hour.{name}", where) for name, value in table.items()},
        electricity_per_kwh=None if electricity is None else _positive(electricity, "electricity_per_kwh", where),
        source=where,
    )


def _positive(value: object, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        msg = f"{where}: expected {key} to be a number above zero, got {value!r}"
        raise UsageError(msg)
    return float(value)
