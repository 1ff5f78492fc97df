"""What a user asks of `cmp run`, typed: click fills it once, and `cmp tune` and `cmp selftest` fill it directly."""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

_WORDS = {"options": "-o", "deadlines": "--deadline", "as_json": "--json", "store": "--out"}


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `cmp run`, one field each; the help of the command says what they mean.

    Attributes:
        engines: "all", "a,b" or "label=engine,other=engine".
        scenario: a name or a TOML file.
        profile: how much of the scenario; None takes the usual one, or the only one that there is.
        usual_profile: see `profile`.
        model: a catalog name or a file; None is the default model.
        matrix: models of which each has a run of its own.
        suite: file of several runs.
        on: placement whose nodes run it, "ssh:hosts.toml"; None is this machine.
        nodes: on how many nodes each run is made; None is every one that fits.
        require: labels that a node must have, "gpu=H200,cpus=16".
        find_max: which load is raised to the largest that keeps `slo`.
        slo: objectives of that search.
        tuned: whether stored settings take the place of the defaults, or run beside them.
        baseline: label or saved run that others are compared with.
        save_baseline: name for the finished run.
        threads: a number, or "auto".
        device: for every engine, or by label.
        blocks: launches of each engine instead of the profile's.
        more_blocks: launches of each engine beyond those of the run that `extend` names.
        max_extra: most time for replacement launches and further blocks, as a share of the planned time.
        adaptive: stop as soon as `precision` is reached.
        precision: share that an adaptive run aims at.
        requests: per launch and cell instead of the profile's.
        temperature: ids are drawn, at this temperature; None is greedy.
        top_k: of so many of the most likely ids.
        top_p: of the fewest most likely ids with this probability.
        stop_at_eos: requests end with the model's end-of-sequence token.
        json_schema: file with the JSON Schema that answers follow in a second set of cells.
        options: of engines, each "LABEL.KEY=VALUE".
        deadlines: each "PHASE=SECONDS".
        out: folder of runs.
        seed: of everything random; None draws one.
        no_gate: skip the equivalence gate.
        fresh_gate: ask the engines again, whatever an earlier gate proved.
        reference: engine that the gate trusts.
        quality_only: the gate without launches.
        score_positions: how many positions the gate scores.
        max_kl: limit of the gate, nats.
        max_nll_increase: limit of the gate, nats per token.
        no_sensors: leave the sensors off.
        wait_idle: wait for an idle machine.
        resume: folder of a run to go on with.
        extend: folder of a run, complete or not, that gets further blocks.
        dry_run: print the plan only.
        as_json: print the outcome as JSON.
        store: address in object storage where runs are kept as well.
        brought: address that the run named by `resume` or `extend` comes from.
    """

    engines: str = "all"
    scenario: str = "sustained"
    profile: str | None = None
    usual_profile: str = "full"
    model: str | None = None
    matrix: str | None = None
    suite: Path | None = None
    on: str | None = None
    nodes: int | None = None
    require: str | None = None
    find_max: Literal["concurrency", "rate"] | None = None
    slo: tuple[str, ...] = ()
    tuned: Literal["default", "tuned", "both"] = "default"
    baseline: str | None = None
    save_baseline: str | None = None
    threads: str = "auto"
    device: str | None = None
    blocks: int | None = None
    more_blocks: int | None = None
    max_extra: float = 0.5
    adaptive: bool = False
    precision: float = 0.02
    requests: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    stop_at_eos: bool = False
    json_schema: Path | None = None
    options: tuple[str, ...] = ()
    deadlines: tuple[str, ...] = ()
    out: Path = Path("results")
    seed: int | None = None
    no_gate: bool = False
    fresh_gate: bool = False
    reference: str = "pytorch_baseline"
    quality_only: bool = False
    score_positions: int | None = None
    max_kl: float | None = None
    max_nll_increase: float | None = None
    no_sensors: bool = False
    wait_idle: bool = False
    resume: Path | None = None
    extend: Path | None = None
    dry_run: bool = False
    as_json: bool = False
    store: str | None = None
    brought: str | None = None

    def chosen_seed(self) -> int:
        """Return the seed that was asked for, or draw one."""
        return secrets.randbelow(2**31) if self.seed is None else self.seed

    def given(self) -> dict[str, Any]:
        """Return the fields that are not the default, as a document holds them."""
        fields = {field.name: (getattr(self, field.name), field.default) for field in msgspec.structs.fields(self)}
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, (value, default) in fields.items()
            if value != default
        }

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RunOptions:
        """Return the options that `given` has described.

        Raises:
            msgspec.ValidationError: a field has a value of another type, or a character that no command line can hold.
        """
        for name, value in given.items():
            if any(isinstance(one, str) and "\0" in one for one in (value if isinstance(value, list) else [value])):
                msg = f"expected text without the character NUL in {name}, got it"
                raise msgspec.ValidationError(msg)
        return msgspec.convert(given, cls, dec_hook=lambda kind, value: kind(value))

    def same_question(self, model_path: str) -> RunOptions:
        """Return the options that ask the same again, from any folder; how much is measured is left open.

        Args:
            model_path: of the file that was timed.
        """
        as_file = self.matrix is not None or (self.model is not None and os.path.exists(self.model))
        of_file = self.scenario.endswith(".toml") or os.sep in self.scenario
        return msgspec.structs.replace(
            self,
            model=model_path if as_file else self.model,
            matrix=None,
            suite=None,
            scenario=str(Path(self.scenario).absolute()) if of_file else self.scenario,
            out=self.out.absolute() if self.out != Path("results") else self.out,
            blocks=None,
            requests=None,
            adaptive=False,
            precision=RunOptions().precision,
            save_baseline=None,
            seed=None,
            as_json=False,
        )

    def words(self, only: Collection[str] | None = None) -> list[str]:
        """Return the words of the command line that asks for this.

        Args:
            only: fields that are written; None writes all that differ from their defaults.
        """
        words = ["cmp", "run"]
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value == field.default or (only is not None and field.name not in only):
                continue
            word = _WORDS.get(field.name, f"--{field.name.replace('_', '-')}")
            if value is True:
                words.append(word)
            else:
                for one in value if isinstance(value, tuple) else (value,):
                    words += [word, str(one)]
        return words
