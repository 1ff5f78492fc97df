"""`cmp import`: files of other tools become runs, and only with what they tell.

The files (tests/data/importers) are made up; every expected number is computed by hand from them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from enginecmp.cli.import_results import command as import_command
from enginecmp.cli.stats import command as stats_command
from enginecmp.errors import CmpError, ResultsError, UsageError
from enginecmp.importers import TOOLS, read_file
from enginecmp.importers.parts import known_stamps

DATA = Path(__file__).parent / "data" / "importers"
AIPERF = DATA / "aiperf" / "profile_export.jsonl"
FILES = {
    "llama-bench": DATA / "llama_bench.json",
    "vllm": DATA / "vllm.json",
    "aiperf": AIPERF,
    "guidellm": DATA / "guidellm.json",
    "sglang": DATA / "sglang_0.5.jsonl",
    "genai-perf": DATA / "genai_perf_0.0.8.json",
    "inference-perf": DATA / "inference_perf_stage.json",
    "optimum-benchmark": DATA / "optimum_benchmark_0.6.json",
}
START = 1759813207000000000


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(import_command, [str(a) for a in arguments], catch_exceptions=False)


def run_import(out: Path, *arguments: str | Path) -> dict[str, Any]:
    result = invoke(*arguments, "--out", out, "--json")
    assert result.exit_code == 0
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def stats(folder: str | Path) -> dict[str, Any]:
    result = CliRunner().invoke(stats_command, [str(folder), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def means(report: dict[str, Any], engine: str, cell: tuple[int, int, int]) -> dict[str, float]:
    keys = ("prompt_tokens", "output_tokens", "concurrency")
    return {
        line["metric"]: line["mean"]
        for line in report["summaries"]
        if line["engine"] == engine and line["cell"] and tuple(line["cell"][key] for key in keys) == cell
    }


def samples(told: dict[str, Any]) -> list[dict[str, Any]]:
    lines = (Path(told["folder"]) / "samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def manifest(told: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(told["folder"]) / "manifest.json").read_text())
    return found


@pytest.mark.parametrize("tool", TOOLS)
def test_each_file_is_known_by_its_keys_and_by_no_other_tool(tool: str) -> None:
    found, launches = read_file(FILES[tool])
    assert (found, len(launches)) == (tool, 1)
    for other in TOOLS:
        if other != tool:
            with pytest.raises(ResultsError, match=f"expected results of {other}"):
                read_file(FILES[tool], other)


def test_vllm_numbers_are_those_of_its_own_definitions(tmp_path: Path) -> None:
    told = run_import(tmp_path, f"v={DATA / 'vllm.json'}")
    # ttft .1 .2 .3; e2e .1+.09, .2+.12, .3+.09; tpot (e2e - ttft) / 3; the only request with a chunk a token has
    # gaps .02 .03 .04; 12 tokens from 100.0 to 100.19 + .39.
    assert means(stats(told["folder"]), "v", (10, 4, 2)) == pytest.approx(
        {
            "ttft_seconds": 0.2,
            "itl_seconds": 0.03,
            "tpot_seconds": 0.1 / 3,
            "e2e_seconds": 0.3,
            "prefill_tokens_per_second": (100 + 50 + 100 / 3) / 3,
            "decode_tokens_per_second": (3 / 0.09 + 3 / 0.12 + 3 / 0.09) / 3,
            "throughput_tokens_per_second": 12 / 0.58,
            "requests_per_second": 3 / 0.58,
        },
        rel=1e-6,
    )
    assert [(s["status"], s["error"]) for s in samples(told)][2:] == [
        ("ok", None),
        ("error", "TimeoutError: no answer"),
    ]


def test_llama_bench_has_durations_and_no_stamp(tmp_path: Path) -> None:
    told = run_import(tmp_path, f"old={DATA / 'llama_bench.json'}", "--only", "n_depth=0")
    assert {tuple(s["token_ns"]) for s in samples(told)} == {()}
    report = stats(told["folder"])
    assert means(report, "old", (512, 0, 1)) == pytest.approx({"e2e_seconds": 2.2, "requests_per_second": 1 / 2.2})
    # 2 x 128 tokens in 3.0 + 3.4 s.
    assert means(report, "old", (0, 128, 1)) == pytest.approx(
        {"e2e_seconds": 3.2, "throughput_tokens_per_second": 40, "requests_per_second": 1 / 3.2}
    )
    written = manifest(told)
    assert written["model"] == {
        "name": "tiny-q8_0.gguf",
        "sha256": "",
        "architecture": "",
        "parameters": 134515008,
        "quantization": "",
        "bytes": 144000000,
        "shape": {},
        "made_from": {},
    }
    assert written["environment"] == {"cpu": "Example CPU"}
    assert (written["engines"][0]["version"], written["engines"][0]["device"]) == ("5163 (8cf427ff)", "cpu")
    assert written["scenario"]["source_tool"] == "llama-bench"
    assert written["scenario"]["source_version"] == "5163 (8cf427ff)"


def test_depths_are_never_mixed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"n_depth is 0 in .*, 512 in .*--only n_depth=0 or --only n_depth=512, or"):
        invoke(f"a={DATA / 'llama_bench.json'}", "--out", tmp_path)
    told = run_import(tmp_path, f"a={DATA / 'llama_bench.json'}", "--only", "n_depth=512")
    assert [s["end_ns"] - s["start_ns"] for s in samples(told)] == [4_000_000_000]
    with pytest.raises(UsageError, match="leaves nothing; it holds n_depth=0 or 512"):
        invoke(f"a={DATA / 'llama_bench.json'}", "--only", "n_depth=9", "--out", tmp_path)
    with pytest.raises(UsageError, match="--only ndepth: no test has such a setting; did you mean 'n_depth'"):
        invoke(f"a={DATA / 'llama_bench.json'}", "--only", "ndepth=0", "--out", tmp_path)
    with pytest.raises(UsageError, match="no test has such a setting; known: cpu_mask, cpu_strict, "):
        invoke(f"a={DATA / 'llama_bench.json'}", "--only", "zzzzzz=0", "--out", tmp_path)


def test_every_value_of_a_sweep_is_offered(tmp_path: Path) -> None:
    entries = json.loads((DATA / "llama_bench_new.json").read_text())
    sweep = tmp_path / "sweep.json"
    sweep.write_text(json.dumps([entry | {"n_threads": threads} for threads in (1, 2, 4) for entry in entries]))
    offered = "--only n_threads=1 or --only n_threads=2 or --only n_threads=4"
    with pytest.raises(UsageError, match=offered):
        invoke(f"a={sweep}", "--out", tmp_path / "results")
    assert samples(run_import(tmp_path / "results", f"a={sweep}", "--only", "n_threads=4"))


def test_llama_bench_json_lines_are_the_same_as_json(tmp_path: Path) -> None:
    lines = tmp_path / "bench.jsonl"
    entries = json.loads((DATA / "llama_bench.json").read_text())
    lines.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert read_file(lines) == read_file(DATA / "llama_bench.json")


def test_aiperf_stamps_are_start_first_token_and_gaps(tmp_path: Path) -> None:
    told = run_import(tmp_path, f"a={AIPERF}")
    second = START + 2_000_000_000
    found = [(s["phase"], s["status"], s["token_ns"], s["index"]) for s in samples(told)]
    gaps = [100, 120, 150, 190]
    assert found[1] == ("measure", "ok", [START + 1_000_000_000 + ms * 1_000_000 for ms in gaps], 0)
    # Without chunks the last token came at the end; the two between have no stamp.
    assert found[2] == ("measure", "ok", [second + 200_000_000, second + 320_000_000], 1)
    assert [(phase, status) for phase, status, _, _ in (found[0], found[3])] == [("warmup", "ok"), ("measure", "error")]
    assert means(stats(told["folder"]), "a", (10, 4, 1)) == pytest.approx(
        {
            "ttft_seconds": 0.15,
            "itl_seconds": 0.03,
            "tpot_seconds": (0.03 + 0.04) / 2,
            "e2e_seconds": (0.19 + 0.32) / 2,
            "prefill_tokens_per_second": (100 + 50) / 2,
            "decode_tokens_per_second": (1 / 0.03 + 1 / 0.04) / 2,
            "throughput_tokens_per_second": 8 / 1.32,
            "requests_per_second": 2 / 1.32,
        },
        rel=1e-6,
    )
    assert told["model"] == "example/tiny"
    assert told["source_version"] == "0.3.0"


def test_aiperf_without_its_summary_needs_the_model_by_name(tmp_path: Path) -> None:
    alone = tmp_path / "profile_export.jsonl"
    alone.write_bytes(AIPERF.read_bytes())
    with pytest.raises(UsageError, match="does not tell its model; name it with --model"):
        invoke(f"a={alone}", "--out", tmp_path)
    told = run_import(tmp_path, f"a={alone}", "--model", "tiny")
    # No limit of requests in flight is told either.
    assert told["engines"][0]["cells"] == [[10, 4, 0]]


def test_guidellm_has_no_single_gaps(tmp_path: Path) -> None:
    told = run_import(tmp_path, f"g={DATA / 'guidellm.json'}")
    # Times are eighths of seconds, exact in binary. 8 tokens in 1.75 s.
    assert means(stats(told["folder"]), "g", (10, 4, 1)) == pytest.approx(
        {
            "ttft_seconds": (0.125 + 0.25) / 2,
            "tpot_seconds": 0.125,
            "e2e_seconds": (0.5 + 0.75) / 2,
            "prefill_tokens_per_second": (80 + 40) / 2,
            "decode_tokens_per_second": 8,
            "throughput_tokens_per_second": 8 / 1.75,
            "requests_per_second": 2 / 1.75,
        },
        rel=1e-9,
    )
    assert told["engines"][0]["requests"] == {"ok": 2, "error": 1, "left out": 1}
    assert told["source_version"] == "0.7.3"


def test_guidellm_with_a_rate_waits_from_the_targeted_start(tmp_path: Path) -> None:
    path = DATA / "guidellm_rates.json"
    with pytest.raises(UsageError, match=r"request_rate is 1\.0 in .*, 2\.0 in"):
        invoke(f"g={path}", "--out", tmp_path)
    told = run_import(tmp_path, f"g={path}", "--only", "request_rate=2.0")
    assert means(stats(told["folder"]), "g", (10, 4, 0))["ttft_seconds"] == pytest.approx(0.25 + (0.125 + 0.25) / 2)


@pytest.mark.parametrize(("chunks", "stamps"), [(2, 2), (1, 1)])
def test_guidellm_knows_both_of_two_tokens_only_from_two_chunks(tmp_path: Path, chunks: int, stamps: int) -> None:
    content = json.loads((DATA / "guidellm.json").read_text())
    request = content["benchmarks"][0]["requests"]["successful"][0]
    request["output_tokens"] = 2
    request["info"]["timings"]["token_iterations"] = chunks
    path = tmp_path / "two.json"
    path.write_text(json.dumps(content))
    _, launches = read_file(path)
    assert len(launches[0][0].requests[0].token_ns) == stamps


def test_times_that_run_backwards_are_refused(tmp_path: Path) -> None:
    content = json.loads((DATA / "guidellm.json").read_text())
    timings = content["benchmarks"][0]["requests"]["successful"][1]["info"]["timings"]
    timings["request_end"] = timings["request_start"]
    path = tmp_path / "backwards.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ResultsError, match=r"backwards\.json: request 1: expected start <= tokens, rising <= end"):
        read_file(path)


def test_a_cancelled_aiperf_request_without_an_error_is_one(tmp_path: Path) -> None:
    record = json.loads(AIPERF.read_text().splitlines()[1])
    record["metadata"]["was_cancelled"] = True
    path = tmp_path / "profile_export.jsonl"
    path.write_text(json.dumps(record))
    _, launches = read_file(path)
    request = launches[0][0].requests[0]
    assert (request.status, request.error, request.token_ns) == ("error", "cancelled", ())


def test_two_files_stand_side_by_side_without_a_verdict(tmp_path: Path) -> None:
    told = run_import(tmp_path, f"fast={DATA / 'vllm.json'}", f"slow={DATA / 'vllm_slow.json'}")
    report = stats(told["folder"])
    ratios = {line["metric"]: line["ratio"] for line in report["comparisons"]}
    assert ratios["ttft_seconds"] == pytest.approx(2)
    assert ratios["throughput_tokens_per_second"] == pytest.approx(0.5)
    assert {(line["verdict"], line["p_value"]) for line in report["comparisons"]} == {("withheld", None)}
    assert any(
        warning.startswith("imported as a single launch: fast, slow; requests of one launch are correlated")
        for warning in report["warnings"]
    )


def test_files_of_one_label_become_launches_with_a_warning(tmp_path: Path) -> None:
    files = [f"a={DATA / 'llama_bench.json'}"] * 3 + [f"b={DATA / 'llama_bench_new.json'}"] * 2
    told = run_import(tmp_path, *files, "--only", "n_depth=0")
    launches = dict.fromkeys((s["launch"], s["block"], s["engine"]) for s in samples(told))
    assert list(launches) == [("b0-a", 0, "a"), ("b1-a", 1, "a"), ("b2-a", 2, "a"), ("b3-b", 3, "b"), ("b4-b", 4, "b")]
    report = stats(told["folder"])
    assert {line["n_launches"] for line in report["comparisons"]} == {2}
    assert any("p-values are optimistic if the engine was not started anew" in w for w in report["warnings"])


def test_paired_files_share_blocks(tmp_path: Path) -> None:
    files = [
        f"{label}={DATA / name}" for _ in range(2) for label, name in (("a", "vllm.json"), ("b", "vllm_slow.json"))
    ]
    told = run_import(tmp_path, *files, "--paired")
    launches = dict.fromkeys((s["launch"], s["block"], s["order"]) for s in samples(told))
    assert list(launches) == [("b0-a", 0, 0), ("b0-b", 0, 1), ("b1-a", 1, 0), ("b1-b", 1, 1)]


def test_appended_vllm_results_are_launches(tmp_path: Path) -> None:
    path = tmp_path / "appended.json"
    path.write_text("\n".join(json.dumps(json.loads((DATA / "vllm.json").read_text())) for _ in range(2)))
    assert run_import(tmp_path, f"v={path}")["engines"][0]["launches"] == 2


def test_models_of_other_names_are_neither_mixed_nor_pooled(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text((DATA / "vllm.json").read_text().replace("example/tiny", "example/big"))
    with pytest.raises(UsageError, match=r"one run has one model, .*'example/tiny' in .*'example/big' in .*--model"):
        invoke(f"v={DATA / 'vllm.json'}", f"w={other}", "--out", tmp_path)
    out = tmp_path / "out"
    run_import(out, f"v={DATA / 'vllm.json'}")
    run_import(out, f"v={other}")
    assert any("is not pooled with" in warning and "scenario.model" in warning for warning in stats(out)["warnings"])
    assert run_import(out, f"v={DATA / 'vllm.json'}", f"w={other}", "--model", "same")["model"] == "same"


def test_builds_under_one_label_are_refused(tmp_path: Path) -> None:
    files = [f"a={DATA / name}" for name in ("llama_bench.json", "llama_bench_new.json")]
    with pytest.raises(UsageError, match=r"version is '5163 \(8cf427ff\)' in .*'5200 \(0a1b2c3d\)' in .*labels"):
        invoke(*files, "--only", "n_depth=0", "--out", tmp_path)


def test_labels_without_a_common_cell_are_pointed_out_and_can_be_put_into_one(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    content = json.loads((DATA / "vllm.json").read_text())
    content["input_lens"] = [11, 11, 11, 11]
    other.write_text(json.dumps(content))
    files = (f"a={DATA / 'vllm.json'}", f"b={other}")
    assert any(note.startswith("b shares no cell with a") for note in run_import(tmp_path, *files)["notes"])
    told = run_import(tmp_path, *files, "--cell", "10:4:2")
    assert told["notes"] == []
    assert {s["prompt_tokens"] for s in samples(told)} == {10, 11}
    assert stats(told["folder"])["comparisons"]


@pytest.mark.parametrize(
    ("stamps", "tokens", "known"),
    [
        ([1, 2, 3], 3, [1, 2, 3]),
        ([1, 3], 3, [1, 3]),
        ([1, 2, 3, 4], 3, [1, 4]),
        ([1, 2, 3], 2, [1]),
        ([1, 2], 1, [1]),
        ([1], 0, []),
    ],
)
def test_stamps_of_chunks_stand_for_tokens_only_where_they_can(
    stamps: list[int], tokens: int, known: list[int]
) -> None:
    assert known_stamps(stamps, tokens) == known


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("vllm.json", {"ttfts": [0.1, None, 0.3, 0.0]}, r"ttfts\[1\]: expected a number >= 0, got None"),
        ("vllm.json", {"ttfts": [0.1, -0.2, 0.3, 0.0]}, r"ttfts\[1\]: expected a number >= 0, got -0\.2"),
        ("vllm.json", {"itls": [[], [], []]}, r"itls: expected 4 entries, one a request, got 3"),
        ("vllm.json", {"itls": [["x"], [], [], []]}, r"itls\[0\]: itls\[0\]: expected a number >= 0, got 'x'"),
        ("vllm.json", {"output_lens": [4, 4, 1.5, 0]}, r"output_lens\[2\]: expected a whole number, got 1\.5"),
        ("vllm.json", {"start_times": [1e300, 1, 1, 1]}, r"a time of 1e\+300 seconds"),
        ("vllm.json", {"input_lens": [2**63, 1, 1, 1]}, r"input_lens\[0\]: expected a number of at most 1000000000"),
        (
            "vllm.json",
            {"input_lens": [10**400, 1, 1, 1]},
            r"input_lens\[0\]: expected a number >= 0, got a number of 1329",
        ),
        ("vllm.json", {"output_lens": {}}, r"output_lens: expected a list, got an object of 0"),
        ("vllm.json", {"output_lens": ...}, r"expected the key 'output_lens', .* an older or newer version"),
        ("guidellm.json", {"benchmarks": []}, r"benchmarks: expected at least one, got none"),
        ("guidellm.json", {"benchmarks": [{}]}, r"benchmarks\[0\]: expected the key 'config'"),
        ("guidellm.json", {"benchmarks": [3]}, r"benchmarks\[0\]: expected an object, got 3"),
    ],
)
def test_a_malformed_file_is_one_line_with_file_and_key(
    tmp_path: Path, source: str, change: dict[str, Any], message: str
) -> None:
    content = json.loads((DATA / source).read_text()) | change
    path = tmp_path / "broken.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    with pytest.raises(ResultsError, match=rf"broken\.json: .*{message}|broken\.json: {message}") as caught:
        read_file(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got an empty file"),
        ("{", "expected JSON"),
        ('{"metadata": {}, "metrics": {}}\n{"metadata"', "line 2"),
        ('{"metadata": {}, "metrics": {}}', "line 1: metadata: expected the key 'request_start_ns'"),
        ('[{"n_prompt": 1, "n_gen": 0, "avg_ns": 0}]', "expected averages above zero, got none: nothing was measured"),
        ('[{"n_prompt": 1, "n_gen": 0, "samples_ns": [0]}]', "request 0: expected a duration above zero, got 0 ns"),
        ('[{"n_prompt": 1, "n_gen": 0, "samples_ns": [true]}]', r"samples_ns\[0\]: expected a number >= 0, got True"),
        ('[{"n_prompt": 1, "n_gen": 0, "avg_ns": 1, "samples_ns": []}]', "samples_ns: expected one duration"),
        ('{"hello": 1}', r"expected results of llama-bench, .*, got other JSON \(keys hello\)"),
        ("[1]", r"got other JSON \(no object with keys\)"),
        ('{"avg_latency": 1, "latencies": []}', "vllm bench latency tells neither model nor lengths"),
        ("[" * 100_000, "expected JSON"),
    ],
)
def test_other_content_is_refused_with_its_reason(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=message) as caught:
        read_file(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.json"], r"expected LABEL=FILE, .* got 'a\.json'"),
        (["a b=a.json"], "expected LABEL=FILE"),
        ([f"v={DATA / 'vllm.json'}", "--from", "vlm"], "unknown tool 'vlm'; did you mean 'vllm'"),
        (["v=/nowhere/a.json"], "/nowhere/a.json: cannot be read"),
        ([f"v={DATA / 'vllm.json'}", "--baseline", "w"], "unknown baseline 'w'"),
        ([f"v={DATA / 'vllm.json'}", "--only", "x"], "expected KEY=VALUE"),
    ],
)
def test_a_wrong_command_writes_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(CmpError, match=message):
        invoke(*arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_imported_is_told_in_words(tmp_path: Path) -> None:
    result = invoke(f"g={DATA / 'guidellm.json'}", "--out", tmp_path)
    first, note, last = result.stdout.splitlines()
    assert first == "g: 1 launch from guidellm, requests: 2 ok, 1 error, 1 left out"
    assert note == "note: g: 1 requests that the end of the test cut off are left out"
    assert last.endswith(f"next: cmp stats {last.split(';')[0]}")
