"""The API key leaves this plugin in one header: not in a run's folder, not on a stream, whatever a server repeats."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import unchanged
from openai_leaks import CASES, FORMS, KEY, RARE_FORMS, given_away, install

from enginecmp import CmpError, EngineError, LoadOptions, ModelInfo
from enginecmp_openai_server.facts import cmp_probe
from enginecmp_openai_server.options import require_no_secrets
from enginecmp_openai_server.redaction import Redaction

pytestmark = unchanged.left_out_with("plugins/openai_server")

VARIABLE = "LEAKY_SERVER_KEY"
SCENARIO = """
name = "leaks"
description = "one short request"
primary_metric = "e2e_seconds"
[[cells]]
prompt_tokens = 4
output_tokens = 4
[profile.full]
blocks = 1
requests = 1
warmup_requests = 1
"""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


@pytest.mark.parametrize("form", FORMS | RARE_FORMS)
def test_a_text_is_rid_of_the_key_in_every_form(form: str) -> None:
    redaction, words = Redaction(KEY), (FORMS | RARE_FORMS)[form]
    for text in (words, f"before {words} after", f"{'x' * 150}{words}"):
        assert given_away(text)
        assert not given_away(redaction.clean(text))
        assert not given_away(redaction.said(text))
    assert redaction.clean(f"before {words} after").startswith("before ")
    assert redaction.clean(f"before {words} after").endswith(" after")


def test_pieces_that_are_not_in_the_order_of_the_key_are_chance() -> None:
    for text in ("the secret of a key, abc", f"{KEY[20:26]} and {KEY[:6]}", f"{KEY[:6]}{' x' * 300} {KEY[6:12]}"):
        assert Redaction(KEY).clean(text) == text


@pytest.mark.parametrize(
    ("secret", "text", "expected"),
    [
        ("", "sk-nothing is taken out", "sk-nothing is taken out"),
        ("EMPTY", "key EMPTY, or emptyness", "key ***, or emptyness"),
        ("k", "k is a key", "*** is a key"),
        ("----", "a ---- b", "a *** b"),
        (KEY, "expected 4 tokens, got 3; 100% of 0x20 &amp; more", "expected 4 tokens, got 3; 100% of 0x20 &amp; more"),
        (KEY, f"{KEY}{KEY} and {KEY}", "*** and ***"),
    ],
)
def test_what_is_no_secret_stays(secret: str, text: str, expected: str) -> None:
    assert Redaction(secret).clean(text) == expected


def test_an_exception_of_any_kind_leaves_without_the_key_and_without_its_cause() -> None:
    redaction = Redaction(KEY)

    def fails(raised: Exception) -> None:
        with redaction.exits():
            try:
                raise ValueError(KEY)
            except ValueError as cause:
                raise raised from cause

    for raised, kind in ((EngineError(f"got {KEY}"), EngineError), (KeyError(KEY), EngineError)):
        raised.add_note(KEY)
        with pytest.raises(kind) as caught:
            fails(raised)
        shown = "".join(traceback.format_exception(caught.value))
        assert not given_away(shown)
        assert "***" in shown


@pytest.mark.parametrize("name", CASES)
def test_no_form_of_the_key_gets_out_wherever_the_server_puts_it(
    stub: Any, drive: Any, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    # Every form has its test above; here it is the places, each with a quarter of the forms.
    for form, words in list(FORMS.items())[list(CASES).index(name) % 4 :: 4]:
        url = install(stub, name, words)
        text = ""
        options = {"url": url, "api_key_env": VARIABLE, "timeout_seconds": "5"}
        asked = repr(cmp_probe(LoadOptions(extra=options)))
        try:
            driver = drive(url=url, api_key_env=VARIABLE, timeout_seconds="5", server="openai")
            shown = str(driver.request([5, 6, 7], 4)[2])
        except CmpError as error:
            text = str(error)
            shown = "".join(traceback.format_exception(error))
        out, err = capfd.readouterr()
        assert text.isprintable()
        assert not given_away(f"{asked}{shown}{out}{err}"), (name, form)


def run_cmp(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "cmp"), *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )


def key_of(label: str) -> tuple[str, str]:
    return "-o", f"{label}.api_key_env={VARIABLE}"


@pytest.mark.timeout(900)
def test_a_whole_run_against_every_misbehaviour_holds_no_form_of_the_key(
    stub: Any, tiny: ModelInfo, tmp_path: Path
) -> None:
    (tmp_path / "leaks.toml").write_text(SCENARIO)
    forms = list(FORMS.values())
    arguments = ["run", "--scenario", "leaks.toml", "--model", tiny.path, "--no-gate", "--no-sensors", "--debug"]
    engines = []
    # A server that does not say what it serves is refused before a run begins.
    begun = [name for name in CASES if not name.startswith("models-")]
    for number, name in enumerate(begun):
        words = " ".join([forms[number % len(forms)], *forms])
        engines.append(f"{name}=openai:{install(stub, name, words)}")
        for option in (f"api_key_env={VARIABLE}", "timeout_seconds=5", "trust_model=yes"):
            arguments += ["-o", f"{name}.{option}"]
    done = run_cmp(tmp_path, *arguments, "--engines", ",".join(engines), "--baseline", begun[0])
    written = sorted(path for path in (tmp_path / "results").rglob("*") if path.is_file())
    assert {"manifest.json", "samples.jsonl", "launches.jsonl"} <= {path.name for path in written}, done.stderr
    texts = {"stdout": done.stdout, "stderr": done.stderr}
    texts |= {str(path): path.read_text(errors="surrogateescape") for path in written}
    assert {name: given_away(text) for name, text in texts.items() if given_away(text)} == {}
    assert not any("\x1b" in text or "\u200b" in text for text in texts.values())
    launches = next(text for name, text in texts.items() if name.endswith("launches.jsonl"))
    assert all(f"{name}" in launches for name in begun)
    url = install(stub, "models-error_401", " ".join(forms))
    refused = run_cmp(tmp_path, *arguments[: arguments.index("-o")], "--engines", f"x=openai:{url}", *key_of("x"))
    assert (refused.returncode, given_away(f"{refused.stdout}{refused.stderr}")) == (1, set())
    assert "x: cannot run here: expected 200 from GET /models, got 401" in refused.stderr


@pytest.mark.parametrize(
    "script",
    [
        "print(KEY, flush=True)",
        "sys.stderr.write(KEY.upper() + '\\n')",
        "[(sys.stdout.write(part), sys.stdout.flush(), time.sleep(0.1)) for part in (KEY[:5], KEY[5:20], KEY[20:])]",
        "print(KEY[:14]); print(KEY[14:])",
        "sys.stdout.write('x' * 200_000 + KEY + 'y' * 200_000)",
        "[sys.stdout.write('z' * 65_520 + KEY) for _ in range(4)]",
        "print(base64.b64encode(('Bearer ' + KEY).encode()).decode())",
        "print(f'args: {sys.argv}')",
    ],
)
def test_the_log_of_a_started_server_is_rid_of_the_key(
    stub: Any, drive: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], script: str
) -> None:
    server = tmp_path / "server.py"
    server.write_text(
        f"import base64, os, sys, time\nKEY = os.environ['{VARIABLE}']\nprint('starts', flush=True)\n{script}\n"
    )
    stub.url = "http://127.0.0.1:9/v1"
    with pytest.raises(EngineError, match="it ended with code 0"):
        drive(start=f"{sys.executable} {server} --key={{api_key}}", api_key_env=VARIABLE)
    said = "".join(capfd.readouterr())
    assert "starts" in said
    assert "***" in said
    assert not given_away(said)


def test_what_the_stop_command_says_is_rid_of_the_key(
    drive: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    drive(stop="echo stopped with {api_key}", api_key_env=VARIABLE).close()
    said = capfd.readouterr().out
    assert "stopped with ***" in said


@pytest.mark.parametrize(
    "extra",
    [
        {"url": f"http://user:{KEY.replace('/', '')}@127.0.0.1:1/v1"},
        {"url": "http://127.0.0.1:1/v1?key=abc"},
        {"url": f"http://127.0.0.1:1/{KEY}/v1"},
        {"start": f"server --api-key {KEY}"},
        {"start": "server --api-key=another-key"},
        {"start_exact": "sh -c 'HF_TOKEN=hf_abc server'"},
        {"stop": "curl -H 'Authorization: Bearer abc'"},
        {"body": '{"api_key": "abc"}'},
        {"body": f'{{"user": "{KEY.lower()}"}}'},
        {"served_model": KEY},
        {"api_key_env": KEY},
        {"api_key_env": "gsk_abcdefghijkl0123456789ABCDEFGHIJKLMN"},
    ],
)
def test_options_that_hold_a_secret_are_refused_before_a_manifest_is_written(extra: dict[str, str]) -> None:
    found = cmp_probe(LoadOptions(extra={"url": "http://127.0.0.1:1/v1", "api_key_env": VARIABLE, **extra}))
    assert not found.ok
    assert not given_away(found.reason)
    assert not any(secret in found.reason for secret in ("abc", "another-key", "gsk_"))
    assert "api_key_env" in found.reason


@pytest.mark.parametrize(
    "start",
    [
        "vllm serve {model} --api-key {api_key} --max-num-batched-tokens 512 --tokenizer-mode auto",
        "sh -c 'server --api-key $LEAKY_SERVER_KEY'",
        "llama-server -m {model} --api-key-file keys.txt --override-kv tokenizer.ggml.add_bos_token=bool:0",
    ],
)
def test_a_start_command_that_names_its_secret_is_taken(start: str) -> None:
    require_no_secrets({"url": "http://127.0.0.1:1/v1", "start": start})
