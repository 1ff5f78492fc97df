"""`cmp scenario`: what can be asked, without asking it; and the POSIX tool's calls stay the POSIX tool's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import CommandLine

from enginecmp.cli import is_posix_call
from enginecmp.plugins.brought import brought
from enginecmp.scenarios.loader import available, load_scenario, profiles_of

MINI = """
name = "mini"
description = "one cell"
primary_metric = "ttft_seconds"
[[cells]]
prompt_tokens = 8
output_tokens = 6
[profile.full]
blocks = 3
requests = 5
[profile.tiny]
blocks = 1
requests = 1
"""


def test_list_names_every_shipped_scenario_with_its_profiles(cmp: CommandLine) -> None:
    rows = json.loads(cmp("scenario", "list", "--json").stdout)["scenarios"]
    brings = brought().scenarios
    assert [row["name"] for row in rows] == sorted(available(brings))
    assert all(row["profiles"] == profiles_of(row["name"], brings) and row["description"] for row in rows)
    told = cmp("scenario", "list").stdout
    assert all(f"\n{row['name']}: {row['description']}\n" in told for row in rows)


def test_show_and_check_read_a_file_with_all_its_profiles(cmp: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "mini.toml").write_text(MINI)
    assert cmp("scenario", "show", "mini.toml").stdout.splitlines() == [
        "one cell",
        "mini/full: ttft_seconds, 3 blocks × 5 requests",
        "  prompt 8, output 6",
        "mini/tiny: ttft_seconds, 1 block × 1 request",
        "  prompt 8, output 6",
    ]
    [shown] = json.loads(cmp("scenario", "show", "mini.toml", "--profile", "tiny", "--json").stdout)["scenarios"]
    assert (shown["profile"], shown["blocks"], shown["deadlines"]["load_seconds"]) == ("tiny", 1, 300.0)
    assert cmp("scenario", "check", "mini.toml").stdout == "mini.toml: fine: full, tiny, 1 cell\n"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("requests = 1\n", "requests = 0\n", "requests"),
        ("output_tokens", "output_token", "did you mean 'output_tokens'"),
        ("[profile.full]", "[profil.full]", "profil"),
    ],
)
def test_check_says_what_is_wrong_with_any_profile(
    cmp: CommandLine, tmp_path: Path, old: str, new: str, said: str
) -> None:
    (tmp_path / "mini.toml").write_text(MINI.replace(old, new))
    done = cmp("scenario", "check", "mini.toml")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_two_files_are_compared_even_where_one_is_called_scenario(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("scenario", "other", "list"):
        Path(name).write_text(name)
    assert is_posix_call(["scenario", "other"])
    assert not is_posix_call(["scenario", "list"])
    assert not is_posix_call(["scenario", "absent"])
    assert not is_posix_call(["scenario"])
    Path("scenario").unlink()
    assert not is_posix_call(["scenario", "other"])


def test_every_shipped_scenario_resolves_with_every_profile() -> None:
    for name in available():
        assert [load_scenario(name, profile).profile for profile in profiles_of(name)] == profiles_of(name)
