"""The stand-in driver through the bare API: its answers, its errors, and what a lost context does.

All of it runs once, in a process of its own (custom_cuda_emulator_child.py): a lost context is lost to a process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enginecmp_custom_cuda.device import Device

HERE = Path(__file__).parent
TRAPPED, ILLEGAL, MISALIGNED = (
    f"CUDA_ERROR_{name}" for name in ("LAUNCH_FAILED", "ILLEGAL_ADDRESS", "MISALIGNED_ADDRESS")
)
REFUSED, GOOD = "CUDA_ERROR_INVALID_VALUE", "CUDA_SUCCESS"


@pytest.fixture(scope="module")
def child(emulated: Device) -> dict[str, dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])}
    environment.pop("CMP_EMULATOR_VERBOSE", None)
    command = [sys.executable, str(HERE / "custom_cuda_emulator_child.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def value(child: dict[str, dict[str, Any]], scenario: str) -> Any:
    """Return what a scenario returned; it wrote nothing to stderr."""
    assert child[scenario]["stderr"] == ""
    return child[scenario]["value"]


@pytest.mark.parametrize(
    ("scenario", "code", "why"),
    [
        ("dead_end", TRAPPED, r"no thread can go on, 32 wait at named barrier \S+:\d+, 32 wait at syncthreads \S+:\d+"),
        ("polls_for_ever", TRAPPED, "no thread can go on, 64 wait at a polled address, 0 have left"),
        ("barriers_of_two_kinds", TRAPPED, r"33 wait at syncthreads \S+:\d+, 31 wait at syncwarp \S+:\d+"),
        ("operations_of_two_kinds", TRAPPED, "lanes of one mask came to different warp operations"),
        ("trap", TRAPPED, r"block \(0,0,0\), thread 5: trap"),
        ("mbarrier_not_made", TRAPPED, "mbarrier: used before it was initialised"),
        ("mbarrier_not_fenced", TRAPPED, "bulk copy: expected fence_mbarrier_init after mbarrier_init"),
        ("not_in_its_mask", TRAPPED, "mask does not name the thread itself"),
        ("endless_recursion", TRAPPED, "thread 63: its stack of 65536 bytes is too small"),
        ("writes_just_behind", ILLEGAL, "thread 32: illegal address .*, byte 1024 of an allocation of 1024 bytes"),
        ("writes_far_behind", ILLEGAL, "illegal address"),
        ("null_pointer", ILLEGAL, "thread 1: illegal address"),
        ("shared_behind", ILLEGAL, "thread 63: illegal address"),
        ("shared_before", ILLEGAL, "outside its 256 bytes of dynamic shared memory, at offset -4"),
        ("misaligned_store", MISALIGNED, "misaligned address"),
        ("misaligned_bulk_copy", MISALIGNED, "bulk copy: expected addresses and a size that are multiples of 16"),
        ("misaligned_stream", MISALIGNED, "load_stream: expected a 16-byte aligned address"),
    ],
)
def test_what_goes_wrong_in_a_kernel_ends_the_context(
    child: dict[str, dict[str, Any]], scenario: str, code: str, why: str
) -> None:
    found, stderr = child[scenario]["value"], child[scenario]["stderr"]
    # The launch itself is fine; the failure comes with the wait, and stays.
    assert found["started"] == GOOD
    assert [found["ended"], *found["after"]] == [code] * 4
    assert found["why"].startswith("kernel wrong: block (0,0,0)")
    assert re.search(why, found["why"])
    assert stderr == f"custom_cuda emulator: {found['why']}\n"


def test_writes_into_the_red_zones_are_found_when_the_host_waits(child: dict[str, dict[str, Any]]) -> None:
    before = child["writes_just_before"]["value"]
    assert [before["ended"], *before["after"]] == [ILLEGAL] * 4
    assert before["why"].startswith("byte -256 of an allocation of 1024 bytes at 0x")
    behind = child["writes_between_an_odd_end_and_the_next_page"]["value"]
    assert behind == [GOOD, ILLEGAL, "byte 1000 of an allocation of 1000 bytes"]


def test_a_lost_context_is_lost_everywhere_until_it_is_made_anew(child: dict[str, dict[str, Any]]) -> None:
    assert child["a_lost_context_is_lost_in_every_stream"]["value"] == [TRAPPED] * 3
    assert child["a_new_context_after_a_lost_one"]["value"] == [GOOD, TRAPPED, GOOD, GOOD, True]


def test_a_bulk_copy_arrives_when_somebody_waits_and_poisons_its_target_before(
    child: dict[str, dict[str, Any]],
) -> None:
    assert value(child, "one_bulk_copy") == [GOOD, GOOD, [1, -1]]


def test_the_device_says_what_it_is(child: dict[str, dict[str, Any]]) -> None:
    facts, name, uuid_bytes, devices, second, multiprocessors = value(child, "device_facts")
    assert facts == [4, 9, 1, 32, 227 * 1024, 1024]
    assert (name, uuid_bytes, devices, second) == ("emulated CUDA device", 16, 1, "CUDA_ERROR_INVALID_DEVICE")
    assert multiprocessors == 7


def test_memory_runs_out_and_comes_back(child: dict[str, dict[str, Any]]) -> None:
    # In steps of 256 bytes, as on a GPU.
    out_of = "CUDA_ERROR_OUT_OF_MEMORY"
    assert value(child, "memory_runs_out") == [1 << 20, -(-700_000 // 256) * 256, out_of, GOOD, REFUSED, REFUSED]


def test_copies_stay_inside_allocations(child: dict[str, dict[str, Any]]) -> None:
    assert value(child, "copies_stay_inside") == [GOOD, REFUSED, REFUSED, GOOD, GOOD, True, [77, 77, 77, 3]]
    assert value(child, "a_copy_keeps_what_pageable_memory_held") is True


def test_images_that_are_no_module_are_refused(child: dict[str, dict[str, Any]]) -> None:
    text, gpu, truncated, kernel, twice, found = child["modules_are_looked_at"]["value"]
    assert (text, truncated) == ("CUDA_ERROR_INVALID_IMAGE",) * 2
    assert (gpu, kernel) == ("CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_NOT_FOUND")
    assert (twice, found) == ("CUDA_ERROR_INVALID_HANDLE", GOOD)


def test_functions_say_what_they_take(child: dict[str, dict[str, Any]]) -> None:
    # rotate: 128 ints of shared memory; the params are three pointers and two ints.
    assert value(child, "functions_say_what_they_take") == [[128, 512, 0], 0, 32, REFUSED]


def test_launches_are_checked_as_the_driver_does(child: dict[str, dict[str, Any]]) -> None:
    answers, synchronized, ran = value(child, "launches_are_checked")
    assert answers == {
        "good": GOOD,
        "threads": "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
        "no threads": REFUSED,
        "no blocks": REFUSED,
        "high grid": REFUSED,
        "shared": REFUSED,
        "params": REFUSED,
        "too many params": REFUSED,
        "good params": GOOD,
        "cluster": "CUDA_ERROR_NOT_SUPPORTED",
        "opted in": GOOD,
        "too much": REFUSED,
    }
    assert (synchronized, ran) == (GOOD, True)


def test_cooperative_launches_must_fit_the_device(child: dict[str, dict[str, Any]]) -> None:
    each, with_shared, answers, synchronized = value(child, "cooperative_launches_must_fit")
    assert (each, with_shared) == (32, 2)
    assert answers == [GOOD, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"]
    assert synchronized == GOOD


def test_grids_have_three_dimensions(child: dict[str, dict[str, Any]]) -> None:
    expected = [x + 10 * y + 100 * z for z in range(4) for y in range(3) for x in range(2)]
    assert value(child, "grids_have_three_dimensions") == [GOOD, expected]


def test_a_captured_graph_runs_when_it_is_launched_and_again(child: dict[str, dict[str, Any]]) -> None:
    # x -> 2 (2 x + 1), three times from 0.
    assert value(child, "graphs_replay") == [1, [GOOD, GOOD], [0], 2, [2, 10, 42], "CUDA_ERROR_INVALID_HANDLE"]


def test_a_capture_breaks_on_calls_that_wait(child: dict[str, dict[str, Any]]) -> None:
    found, relaxed, ended, twice = value(child, "a_capture_breaks_on_calls_that_wait")
    assert found == [["CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"]] * 4
    assert (relaxed, ended, twice) == (GOOD, GOOD, "CUDA_ERROR_ILLEGAL_STATE")


def test_events_rise(child: dict[str, dict[str, Any]]) -> None:
    unrecorded = untimed = "CUDA_ERROR_INVALID_HANDLE"
    assert value(child, "events_rise") == [unrecorded, True, True, untimed, GOOD]


def test_streams_run_apart_until_an_event_joins_them(child: dict[str, dict[str, Any]]) -> None:
    busy = "CUDA_ERROR_NOT_READY"
    assert value(child, "streams_run_apart_until_an_event_joins_them") == [GOOD, busy, busy, GOOD, True]


def test_faults_come_when_they_are_asked_for(child: dict[str, dict[str, Any]]) -> None:
    answers, lost, after, why = value(child, "faults_come_when_they_are_asked_for")
    assert answers == [GOOD, GOOD, "CUDA_ERROR_OUT_OF_MEMORY", GOOD]
    assert (lost, after, why) == (TRAPPED, TRAPPED, "injected into cuStreamSynchronize")


def test_a_ring_that_does_not_wait_reads_or_overwrites_what_it_must_not(child: dict[str, dict[str, Any]]) -> None:
    found = child["rings_that_do_not_wait"]["value"]
    # 32 words 3 of each thread: sum = 3 sum + 3, so 3 (3^32 - 1) / 2, as int32.
    right = (3 * (3**32 - 1) // 2 + 2**31) % 2**32 - 2**31
    assert len(found) == 12
    for name, outcome in found.items():
        assert (outcome == [right] * 64) == name.startswith("none"), name


def test_what_is_not_there_is_named_once_where_it_is_asked_for(child: dict[str, dict[str, Any]]) -> None:
    found = child["what_is_not_there_says_so"]
    assert found["value"] == [["CUDA_ERROR_NOT_SUPPORTED"] * 2, "operation not supported"]
    assert found["stderr"] == "custom_cuda emulator: cuMemPoolDestroy is not supported\n"


def test_calls_want_a_context(child: dict[str, dict[str, Any]]) -> None:
    assert value(child, "calls_want_a_context") == "CUDA_ERROR_INVALID_CONTEXT"
