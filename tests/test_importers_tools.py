"""Each tool's own numbers come back from its files, and nothing that they do not tell.

The files (tests/data/importers) are made up; every expected number is computed by hand from them.
"""

from __future__ import annotations

import bz2
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import CommandLine
from test_importers import DATA, invoke, manifest, means, run_import, samples, stats

from enginecmp.cli.compare import command as compare_command
from enginecmp.errors import CmpError, ResultsError, UsageError
from enginecmp.importers import read_file
from enginecmp_analysis.data.load import load_runs


def changed(tmp_path: Path, source: str, change: dict[str, Any], name: str = "changed.json") -> Path:
    """Return a copy of a sample file with other values at its top level; `...` takes a key away."""
    content = json.loads((DATA / source).read_text()) | change
    path = tmp_path / name
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    return path


def guidellm(tmp_path: Path, **benchmark: Any) -> Path:
    """Return a copy of the guidellm file with other values in its benchmark."""
    content = json.loads((DATA / "guidellm.json").read_text())
    for key, value in benchmark.items():
        place = content["benchmarks"][0]
        place[key] = place[key] | value if isinstance(place.get(key), dict) else value
    path = tmp_path / "guidellm.json"
    path.write_text(json.dumps(content))
    return path


SERVED = {
    "ttft_seconds": 0.2,
    "tpot_seconds": 0.1 / 3,
    "itl_seconds": 0.1 / 3,
    "e2e_seconds": 0.3,
    "throughput_tokens_per_second": 20,
    "requests_per_second": 5,
}


@pytest.mark.parametrize(
    ("file", "cell", "expected"),
    [
        ("sglang_0.5.jsonl", (10, 4, 2), SERVED),
        (
            "vllm_averages.json",
            (10, 4, 2),
            {"ttft_seconds": 0.2, "throughput_tokens_per_second": 12, "requests_per_second": 3},
        ),
        (
            "vllm_sweep_summary.json",
            (10, 4, 2),
            {"ttft_seconds": 0.21, "throughput_tokens_per_second": 12, "requests_per_second": 3},
        ),
        *(
            (
                file,
                (100, 16, 2),
                {
                    "ttft_seconds": 0.125,
                    "tpot_seconds": 0.025,
                    "e2e_seconds": 0.5,
                    "throughput_tokens_per_second": 64,
                    "requests_per_second": 4,
                },
            )
            for file in ("genai_perf_0.0.8.json", "genai_perf_0.0.15.json")
        ),
        (
            "inference_perf_stage.json",
            (100, 16, 0),
            {
                "ttft_seconds": 0.125,
                "tpot_seconds": 0.025,
                "itl_seconds": 0.025,
                "e2e_seconds": 0.5,
                "throughput_tokens_per_second": 32,
                "requests_per_second": 2,
            },
        ),
    ],
)
def test_averages_are_launch_means(
    tmp_path: Path, file: str, cell: tuple[int, int, int], expected: dict[str, float]
) -> None:
    told = run_import(tmp_path, f"a={DATA / file}", "--model", "tiny")
    assert samples(told) == []
    report = stats(told["folder"])
    assert means(report, "a", cell) == pytest.approx(expected)
    assert {line["p50"] for line in report["summaries"]} == {None}
    assert any("one file is one launch mean" in warning for warning in report["warnings"])


def averaged(tmp_path: Path, launches: int) -> dict[str, Any]:
    """Import averages of two labels, the second 1.5 times as slow, and return what cmp stats says."""
    files = []
    for number in range(launches):
        for label, factor in (("a", 1.0), ("b", 1.5)):
            tmp_path.mkdir(exist_ok=True)
            ttft = 200 * factor * (1 + 0.01 * (number * 7 % 5))
            path = changed(tmp_path, "vllm_averages.json", {"mean_ttft_ms": ttft}, f"{label}{number}.json")
            files.append(f"{label}={path}")
    return stats(run_import(tmp_path / "out", *files)["folder"])


def test_averages_are_shown_with_one_file_and_compared_from_ten_on(tmp_path: Path) -> None:
    for launches, verdict, more in ((1, "withheld", 9), (9, "withheld", 1), (10, "slower", 0)):
        report = averaged(tmp_path / str(launches), launches)
        (line,) = (line for line in report["comparisons"] if line["metric"] == "ttft_seconds")
        assert line["ratio"] == pytest.approx(1.5)
        assert (line["n_launches"], line["verdict"], line["launches_needed"]) == (launches, verdict, more)


def test_sglang_details_hold_times_of_requests_and_no_starts(tmp_path: Path) -> None:
    told = run_import(tmp_path, f"s={DATA / 'sglang_0.5_details.jsonl'}")
    # itl: gaps of three requests .02 .03 .04, .03 .04 .05, .02 .03 .04; the rates are sglang's own.
    assert means(stats(told["folder"]), "s", (10, 4, 2)) == pytest.approx(
        {
            "ttft_seconds": 0.2,
            "tpot_seconds": 0.1 / 3,
            "itl_seconds": 0.3 / 9,
            "e2e_seconds": 0.3,
            "prefill_tokens_per_second": (100 + 50 + 100 / 3) / 3,
            "decode_tokens_per_second": (3 / 0.09 + 3 / 0.12 + 3 / 0.09) / 3,
            "throughput_tokens_per_second": 20,
            "requests_per_second": 5,
        },
        rel=1e-6,
    )
    assert told["model"] == "example-tiny"
    assert manifest(told)["engines"][0]["version"] == "0.5.6"
    assert [s["error"] for s in samples(told)][3] == "ValueError: gone"


def test_vllm_without_start_times_keeps_the_times_and_takes_the_rates_from_its_averages(tmp_path: Path) -> None:
    told = run_import(tmp_path, f"v={changed(tmp_path, 'vllm.json', {'start_times': ...})}")
    found = means(stats(told["folder"]), "v", (10, 4, 2))
    assert (found["ttft_seconds"], found["e2e_seconds"]) == pytest.approx((0.2, 0.3))
    assert (found["throughput_tokens_per_second"], found["requests_per_second"]) == (12, 3)


def test_a_limit_of_requests_in_flight_is_no_number_of_users(tmp_path: Path) -> None:
    told = run_import(tmp_path, f"v={changed(tmp_path, 'vllm.json', {'request_rate': 4.0, 'max_concurrency': 100})}")
    assert told["engines"][0]["cells"] == [[10, 4, 0]]
    assert samples(told)[0]["cell"] | {"output_tokens": 4} == {
        "prompt_tokens": 10,
        "output_tokens": 4,
        "concurrency": 0,
        "arrival": "poisson",
        "rate_per_second": 4.0,
    }
    assert manifest(told)["scenario"]["conditions"] == {"request_rate": 4.0, "max_concurrency": 100}
    strategy = {"type_": "throughput", "max_concurrency": 512}
    told = run_import(tmp_path, f"g={guidellm(tmp_path, config={'strategy': strategy})}")
    assert told["engines"][0]["cells"] == [[10, 4, 0]]
    # Fewer requests than users: no more were in flight.
    told = run_import(tmp_path, f"v={changed(tmp_path, 'vllm.json', {'max_concurrency': 100})}")
    assert told["engines"][0]["cells"] == [[10, 4, 4]]


def test_guidellm_leaves_out_warm_up_and_cool_down_as_it_does_itself(tmp_path: Path) -> None:
    # The requests are from 1780000000 to .5 and from 1780000001 to .75.
    window = {"measure_start_time": 1780000000.75, "measure_end_time": 1780000002.0}
    told = run_import(tmp_path, f"g={guidellm(tmp_path, scheduler_metrics=window)}")
    assert [s["phase"] for s in samples(told)][:2] == ["warmup", "measure"]
    assert means(stats(told["folder"]), "g", (10, 4, 1))["ttft_seconds"] == 0.25
    window = {"measure_start_time": 1780000000.0, "measure_end_time": 1780000001.0}
    told = run_import(tmp_path, f"g={guidellm(tmp_path, scheduler_metrics=window)}")
    assert means(stats(told["folder"]), "g", (10, 4, 1))["ttft_seconds"] == 0.125
    assert any("of warm-up and cool-down are not compared" in note for note in told["notes"])


def test_guidellm_with_sampled_requests_takes_the_rates_from_its_averages(tmp_path: Path) -> None:
    metrics = {
        "request_totals": {"successful": 40, "errored": 1, "incomplete": 1, "total": 42},
        "output_tokens_per_second": {"successful": {"mean": 96.0}},
        "requests_per_second": {"successful": {"mean": 24.0}},
    }
    told = run_import(tmp_path, f"g={guidellm(tmp_path, metrics=metrics)}")
    found = means(stats(told["folder"]), "g", (10, 4, 1))
    assert (found["throughput_tokens_per_second"], found["requests_per_second"]) == (96, 24)
    assert found["ttft_seconds"] == pytest.approx((0.125 + 0.25) / 2)
    assert (
        "g: the file holds 2 sampled requests of 40; rates are guidellm's own averages over all of them"
        in (told["notes"])
    )


def test_guidellm_without_requests_is_averages(tmp_path: Path) -> None:
    metrics = {
        "request_totals": {"successful": 40},
        "prompt_token_count": {"successful": {"mean": 10.0}},
        "output_token_count": {"successful": {"mean": 4.0}},
        "time_to_first_token_ms": {"successful": {"mean": 60.0}},
        "inter_token_latency_ms": {"successful": {"mean": 12.5}},
        "request_latency": {"successful": {"mean": 0.25}},
        "output_tokens_per_second": {"successful": {"mean": 96.0}},
        "requests_per_second": {"successful": {"mean": 24.0}},
    }
    requests = {"successful": [], "errored": None, "incomplete": []}
    told = run_import(tmp_path, f"g={guidellm(tmp_path, metrics=metrics, requests=requests)}")
    assert means(stats(told["folder"]), "g", (10, 4, 1)) == pytest.approx(
        {
            "ttft_seconds": 0.06,
            "tpot_seconds": 0.0125,
            "e2e_seconds": 0.25,
            "throughput_tokens_per_second": 96,
            "requests_per_second": 24,
        }
    )


@pytest.mark.parametrize("version", ["0.2", "0.4"])
def test_inference_perf_requests_have_stamps(tmp_path: Path, version: str) -> None:
    told = run_import(tmp_path, f"i={DATA / f'inference_perf_per_request_{version}.json'}", "--model", "tiny")
    # .125 then three gaps of .25; .25 then .5, 0 and .25, of which the two at once tell no single gap.
    assert means(stats(told["folder"]), "i", (10, 4, 0)) == pytest.approx(
        {
            "ttft_seconds": 0.1875,
            "tpot_seconds": 0.25,
            "itl_seconds": 0.25,
            "e2e_seconds": (0.875 + 1.0) / 2,
            "prefill_tokens_per_second": (80 + 40) / 2,
            "decode_tokens_per_second": 4,
            "throughput_tokens_per_second": 8 / 1.5,
            "requests_per_second": 2 / 1.5,
        }
    )
    assert samples(told)[2]["error"] == "no answer"


def test_optimum_benchmark_calls_of_a_batch_start_and_end_together(tmp_path: Path) -> None:
    told = run_import(tmp_path, f"o={DATA / 'optimum_benchmark_0.6.json'}")
    report = stats(told["folder"])
    # Two calls of two sequences with 5 tokens each: 1.0 s and 1.25 s, of which prefill .25 and .5.
    assert means(report, "o", (10, 5, 2)) == pytest.approx(
        {
            "ttft_seconds": 0.375,
            "tpot_seconds": (0.75 + 0.5) / 2 / 4,
            "e2e_seconds": 1.125,
            "prefill_tokens_per_second": (40 + 20) / 2,
            "decode_tokens_per_second": (4 / 0.75 + 4 / 0.5) / 2,
            "throughput_tokens_per_second": 20 / 2.25,
            "requests_per_second": 4 / 2.25,
        }
    )
    assert [line["mean"] for line in report["summaries"] if line["metric"] == "load_seconds"] == [2.0]
    written = manifest(told)
    assert (written["engines"][0]["version"], written["engines"][0]["device"]) == ("pytorch 2.5.1", "cpu")
    assert written["environment"] == {"cpu": "Example CPU", "gpu": "Example GPU"}


def test_optimum_benchmark_with_prefill_apart_pairs_no_times(tmp_path: Path) -> None:
    told = run_import(tmp_path, f"o={DATA / 'optimum_benchmark_0.6_vllm.json'}")
    assert {tuple(s["token_ns"]) for s in samples(told)} == {()}
    assert means(stats(told["folder"]), "o", (10, 5, 2)) == pytest.approx(
        {
            "ttft_seconds": 0.375,
            "e2e_seconds": 1.125,
            "throughput_tokens_per_second": 20 / 2.25,
            "requests_per_second": 4 / 2.25,
        }
    )


def test_an_optimum_report_takes_its_configuration_from_the_file_beside_it(tmp_path: Path) -> None:
    content = json.loads((DATA / "optimum_benchmark_0.6.json").read_text())
    report = tmp_path / "benchmark_report.json"
    report.write_text(json.dumps(content["report"]))
    told = run_import(tmp_path / "out", f"o={report}", "--model", "tiny")
    # Lengths and batch are not told, hence no rate.
    assert means(stats(told["folder"]), "o", (0, 0, 0)) == pytest.approx(
        {"ttft_seconds": 0.375, "tpot_seconds": 0.15625, "e2e_seconds": 1.125}
    )
    assert "put benchmark_config.json beside the file" in told["notes"][0]
    (tmp_path / "benchmark_config.json").write_text(json.dumps(content["config"]))
    assert read_file(report) == read_file(DATA / "optimum_benchmark_0.6.json")


@pytest.mark.parametrize("form", ["csv", "sql"])
def test_llama_bench_averages_of_csv_and_sql_are_those_of_its_json(tmp_path: Path, form: str) -> None:
    told = run_import(tmp_path, f"l={DATA / f'llama_bench.{form}'}")
    report = stats(told["folder"])
    assert means(report, "l", (512, 0, 1)) == pytest.approx({"e2e_seconds": 2.2})
    assert means(report, "l", (0, 128, 1)) == pytest.approx({"e2e_seconds": 3.2, "throughput_tokens_per_second": 40})
    as_json = run_import(tmp_path, f"l={DATA / 'llama_bench.json'}", "--only", "n_depth=0")
    assert manifest(told)["engines"] == manifest(as_json)["engines"]
    assert manifest(told)["model"] == manifest(as_json)["model"]


def test_a_llama_bench_table_is_read_from_a_log(tmp_path: Path) -> None:
    path = DATA / "llama_bench.md"
    with pytest.raises(UsageError, match=r"n_depth is 0 in .*, 512 in"):
        invoke(f"l={path}", "--out", tmp_path)
    told = run_import(tmp_path, f"l={path}", "--only", "n_depth=0")
    report = stats(told["folder"])
    assert means(report, "l", (512, 0, 1)) == pytest.approx({"e2e_seconds": 2})
    assert means(report, "l", (0, 128, 1)) == pytest.approx({"e2e_seconds": 3.2, "throughput_tokens_per_second": 40})
    engine = manifest(told)["engines"][0]
    assert (engine["version"], engine["device"]) == ("5163 (8cf427ff)", "cpu")
    assert {key: engine["options"][key] for key in ("n_threads", "flash_attn")} == {"n_threads": 2, "flash_attn": 1}
    told = run_import(tmp_path, f"l={path}", "--only", "n_depth=512")
    assert means(stats(told["folder"]), "l", (0, 128, 1))["e2e_seconds"] == pytest.approx(4)


def bench(tmp_path: Path, *changes: dict[str, Any], name: str = "bench.json") -> Path:
    """Return a llama-bench file with one generation test for every change."""
    entry = json.loads((DATA / "llama_bench.json").read_text())[1]
    path = tmp_path / name
    path.write_text(json.dumps([entry | change for change in changes]))
    return path


def test_models_of_one_file_are_chosen_by_name_and_never_pooled(tmp_path: Path) -> None:
    slow = {"model_filename": "C:\\\\m\\\\big.gguf", "model_size": 2, "samples_ns": [10**9]}
    path = bench(tmp_path, {}, slow)
    for arguments in ([], ["--model", "any"]):
        with pytest.raises(UsageError, match=r"holds several models, .* model_filename=models/tiny-q8_0\.gguf"):
            invoke(f"l={path}", "--out", tmp_path, *arguments)
    for choice in (["--only", "model=big.gguf"], ["--model", "big.gguf"]):
        told = run_import(tmp_path, f"l={path}", *choice)
        assert told["model"] == "big.gguf"
        assert means(stats(told["folder"]), "l", (0, 128, 1))["e2e_seconds"] == 1
    # The same name in two folders is no same model.
    other = bench(tmp_path, {}, {"model_filename": "other/tiny-q8_0.gguf"})
    with pytest.raises(UsageError, match="holds several models"):
        invoke(f"l={other}", "--out", tmp_path, "--model", "tiny-q8_0.gguf")


def test_one_name_for_weights_of_two_sizes_is_pointed_out(tmp_path: Path) -> None:
    files = [f"a={bench(tmp_path, {}, name='a.json')}", f"b={bench(tmp_path, {'model_size': 7}, name='b.json')}"]
    with pytest.raises(UsageError, match=r"'tiny-q8_0\.gguf' has 144000000 bytes in .*, 7 bytes in .* --model"):
        invoke(*files, "--out", tmp_path)
    assert run_import(tmp_path, *files, "--model", "tiny")["model"] == "tiny"


def test_keys_that_are_no_settings_known_are_told_and_not_compared(tmp_path: Path) -> None:
    path = bench(tmp_path, {"peak_memory": 1, "room": "blue"}, {"peak_memory": 2, "room": "red"})
    told = run_import(tmp_path, f"l={path}")
    assert "peak_memory" not in manifest(told)["engines"][0]["options"]
    assert "l: keys that are no settings known here are not read: peak_memory, room" in told["notes"]


@pytest.mark.parametrize("word", ["-nan", "nan", "-nan(ind)", "inf", "NaN", "-Infinity", "null"])
def test_what_nothing_needs_costs_nothing(tmp_path: Path, word: str) -> None:
    text = bench(tmp_path, {"stddev_ts": "HERE", "note": 'a "nan" -nan'}).read_text()
    path = tmp_path / "nan.json"
    path.write_text(text.replace('"HERE"', word))
    _, launches = read_file(path)
    assert [request.end_ns for request in launches[0][0].requests] == [3_000_000_000, 6_400_000_000]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("form", ["json", "jsonl", "md", "csv"])
def test_encodings_of_other_systems_are_read(tmp_path: Path, encoding: str, form: str) -> None:
    source = DATA / f"llama_bench.{form}"
    if form == "jsonl":
        entries = json.loads((DATA / "llama_bench.json").read_text())
        text = "".join(json.dumps(entry) + "\r\n" for entry in entries)
        source = DATA / "llama_bench.json"
    else:
        text = source.read_text().replace("\n", "\r\n")
    path = tmp_path / f"file.{form}"
    path.write_bytes(text.encode(encoding))
    assert read_file(path) == read_file(source)


def test_a_table_in_another_encoding_is_read(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    path.write_bytes((DATA / "llama_bench.md").read_text().encode("latin-1"))
    assert read_file(path) == read_file(DATA / "llama_bench.md")


def test_requests_of_several_models_in_one_list_are_refused(tmp_path: Path) -> None:
    config = json.loads((DATA / "genai_perf_0.0.8.json").read_text())["input_config"] | {"model": ["a", "b"]}
    path = changed(tmp_path, "genai_perf_0.0.8.json", {"input_config": config})
    with pytest.raises(ResultsError, match="expected one model, got a, b: whose a request was is not told"):
        read_file(path)


def test_guidellm_says_when_it_asked_for_a_warm_up_and_does_not_tell_which_it_was(tmp_path: Path) -> None:
    told = run_import(tmp_path, f"g={guidellm(tmp_path, config={'warmup': {'percent': 0.1, 'value': None}})}")
    assert any("warmup was asked and the file does not tell when it was" in note for note in told["notes"])


def test_text_in_no_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ResultsError, match="expected text in utf-8: invalid start byte at byte 7"):
        read_file(path)


def test_early_aiperf_names_are_read(tmp_path: Path) -> None:
    line = (DATA / "aiperf" / "profile_export.jsonl").read_text().splitlines()[1]
    old = line.replace("request_start_ns", "timestamp_ns").replace("benchmark_phase", "credit_phase")
    path = tmp_path / "old.jsonl"
    path.write_text(old.replace("time_to_first_token", "ttft"))
    new = tmp_path / "new.jsonl"
    new.write_text(line)
    assert read_file(path) == read_file(new)


def test_a_request_that_stands_in_a_file_twice_is_refused(tmp_path: Path) -> None:
    lines = (DATA / "aiperf" / "profile_export.jsonl").read_text().splitlines()
    path = tmp_path / "twice.jsonl"
    path.write_text("\n".join([*lines, lines[1]]))
    with pytest.raises(ResultsError, match=r"request 5 is request 2 again \('request-1'\): it would count twice"):
        read_file(path)


def test_a_file_given_twice_is_pointed_out(tmp_path: Path) -> None:
    told = run_import(tmp_path, *[f"v={DATA / 'vllm.json'}"] * 3)
    assert any("vllm.json again: one measurement counts as 3 launches" in note for note in told["notes"])


@pytest.mark.parametrize(("file", "other"), [("vllm.json", "guidellm"), ("sglang_0.5.jsonl", "vllm")])
def test_a_wrong_tool_is_told_the_right_one(file: str, other: str) -> None:
    right = read_file(DATA / file)[0]
    with pytest.raises(ResultsError, match=f"expected results of {other}, got those of {right}; pass --from {right}"):
        read_file(DATA / file, other)
    assert read_file(DATA / file, right)[0] == right


def test_a_file_without_a_single_success_is_no_measurement(tmp_path: Path) -> None:
    path = changed(tmp_path, "vllm.json", {"errors": ["x", "x", "x", "y"]})
    with pytest.raises(ResultsError, match=r"no request that was measured succeeded \(3 x, 1 y\)"):
        invoke(f"v={path}", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_special_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "zero", tmp_path):
        with pytest.raises(ResultsError, match=r"expected a file of results, got a (device, pipe|folder)"):
            read_file(path)


@pytest.mark.parametrize(
    "change",
    [
        {"model_id": "a\x1b[31m\x07\u202eb\nforged"},
        {"model_id": "lone \ud800 surrogate", "backend": "x\ud800"},
        {"errors": ["\x1b]0;x\x07\ud800", "", "", "late"]},
        {"max_concurrency": 10**9},
        {"start_times": [4.5e9, 4.5e9, 4.5e9, 4.5e9]},
        {"label": [[[[1]]]] * 50, "date": {"a": {}}},
    ],
)
def test_what_is_imported_is_read(tmp_path: Path, change: dict[str, Any]) -> None:
    told = run_import(tmp_path / "out", f"v={changed(tmp_path, 'vllm.json', change)}")
    assert told["model"].isprintable()
    assert stats(told["folder"])["summaries"]


@pytest.mark.parametrize(
    "change",
    [
        {"start_times": [4.5e9, 1, 1, 1], "ttfts": [4.5e9, 1, 1, 1]},
        {"start_times": [4.7e9, 1, 1, 1]},
        {"start_times": [[1], 1, 1, 1]},
        {"model_id": {"a": 1}},
        {"request_rate": "soon"},
        {"request_rate": [1]},
        {"max_concurrency": -1},
        {"max_concurrency": 10**10},
        {"itls": 5},
        {"itls": [5, [], [], []]},
        {"output_lens": [4, 4, 4, True]},
    ],
)
def test_what_no_reader_could_take_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    path = changed(tmp_path, "vllm.json", change)
    with pytest.raises(CmpError) as caught:
        invoke(f"v={path}", "--out", tmp_path / "out")
    assert str(caught.value).isprintable()
    assert not list(tmp_path.glob("out/*"))


def test_cmp_compare_takes_averages_from_ten_on(tmp_path: Path) -> None:
    runs = []
    for name, factor in (("base", 1.0), ("new", 1.5)):
        files = []
        for number in range(10):
            ttft = 200 * factor * (1 + 0.01 * (number * 7 % 5))
            path = changed(tmp_path, "vllm_averages.json", {"mean_ttft_ms": ttft}, f"{name}{number}.json")
            files.append(f"v={path}")
        runs.append(run_import(tmp_path / name, *files)["folder"])
    result = CliRunner().invoke(compare_command, [*runs, "--metric", "ttft_seconds"], catch_exceptions=False)
    assert "FAILED: a regression is confirmed at level critical or above (1 CRITICAL)" in result.stdout


def test_an_average_too_large_to_be_measured_is_absent(cmp: CommandLine, tmp_path: Path) -> None:
    results = json.loads((DATA / "vllm_averages.json").read_text())
    lines = [{**results, "request_throughput": value} for value in (1e308, 1.5e308, 2.0)]
    for number, content in enumerate(lines):
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    assert cmp("import", *(f"a={number}.json" for number in range(3))).returncode == 0
    (run,) = load_runs([tmp_path / "results"])
    assert [told.metrics.get("requests_per_second") for told in run.told] == [None, None, 2.0]
    done = cmp("stats", "--all")
    assert done.returncode == 0
    assert done.stderr == ""


def test_gzip_is_unpacked_and_what_is_packed_otherwise_is_named(tmp_path: Path) -> None:
    whole = (DATA / "vllm.json").read_bytes()
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(whole))
    assert read_file(tmp_path / "a.json.gz", None) == read_file(DATA / "vllm.json", None)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(ResultsError, match="expected a whole gzip file"):
        read_file(tmp_path / "cut.gz", None)
    (tmp_path / "a.bz2").write_bytes(bz2.compress(whole))
    with pytest.raises(ResultsError, match="got bzip2; unpack it first"):
        read_file(tmp_path / "a.bz2", None)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginecmp.importers.documents.LARGEST_BYTES", 1 << 20)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(4 << 20)))
    with pytest.raises(ResultsError, match="at most 1 MiB when unpacked"):
        read_file(tmp_path / "bomb.gz", None)


@pytest.mark.parametrize("name", ["llama_bench.md", "llama_bench.csv", "llama_bench.sql"])
def test_a_table_that_is_cut_in_its_last_row_loses_no_row_silently(name: str, tmp_path: Path) -> None:
    whole = (DATA / name).read_text()
    rows = whole.rstrip().splitlines()
    last = next(at for at in range(len(rows) - 1, -1, -1) if rows[at].startswith(("|", '"', "INSERT")))
    path = tmp_path / name
    path.write_text("\n".join([*rows[:last], rows[last][: len(rows[last]) // 2]]))
    with pytest.raises(ResultsError, match=rf"line {last + 1}: expected a row"):
        read_file(path, None)


def test_a_field_longer_than_a_table_holds_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text(f'build_commit,build_number,n_prompt,n_gen,avg_ts\n"{"a" * 200_000}","1","2","3","4"\n')
    with pytest.raises(ResultsError, match="line 2: expected a row of llama-bench: field larger"):
        read_file(path, None)
