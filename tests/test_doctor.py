"""What the doctor says of planted machines, and that it changes nothing and never fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nvml_replay
import pytest
from conftest import CommandLine
from helpers import only_run, plant

from enginecmp.doctor import Finding, examine, gpu
from enginecmp.doctor.surroundings import background
from enginecmp.errors import SensorAbsent
from enginecmp.format.readers import read_manifest
from enginecmp.machine.cgroup import cpu_quota_cores, memory_limit_bytes
from enginecmp.telemetry.idle import Busyness
from enginecmp.types import ModelInfo

CPU = "sys__devices__system__cpu"
CLOCK = "sys__devices__system__clocksource__clocksource0"
MEMORY = (
    "MemTotal:       16777216 kB\nMemAvailable:   {available} kB\nSwapTotal:       4194304 kB\nSwapFree:  {swap} kB\n"
)


def machine(root: Path, **changes: str) -> Path:
    """Plant a machine that is fit for measuring, then change it."""
    plant(
        root,
        **{
            f"{CPU}__cpu0__cpufreq__scaling_governor": "performance\n",
            f"{CPU}__cpu1__cpufreq__scaling_governor": "performance\n",
            f"{CPU}__intel_pstate__no_turbo": "1\n",
            f"{CPU}__smt__active": "0\n",
            f"{CPU}__online": "0-1\n",
            f"{CLOCK}__current_clocksource": "tsc\n",
            f"{CLOCK}__available_clocksource": "tsc hpet acpi_pm\n",
            "proc__self__status": "Name:\tcmp\nCpus_allowed_list:\t0-1\n",
            "proc__cpuinfo": "processor\t: 0\nflags\t\t: fpu sse2 avx2\n",
            "proc__stat": "cpu  1000 0 1000 9000 0 0 0 500 0 0\n",
            "proc__meminfo": MEMORY.format(available=8388608, swap=4194304),
            "proc__pressure__cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
            "proc__self__cgroup": "0::/\n",
            "sys__kernel__mm__transparent_hugepage__enabled": "always [madvise] never\n",
            "sys__devices__system__node__node0__cpulist": "0-1\n",
            **changes,
        },
    )
    return root


def findings(root: Path) -> dict[str, Finding]:
    """Return what is said of the planted files; the disk and the GPUs are this machine's own."""
    every = {finding.check: finding for finding in examine(root, root=root)}
    return {check: finding for check, finding in every.items() if check != "disk" and not check.startswith("gpu")}


def test_a_fit_machine_gets_no_advice(tmp_path: Path) -> None:
    found = findings(machine(tmp_path))
    assert {check for check, finding in found.items() if finding.severity != "ok"} == set()
    assert {finding.fix for finding in found.values()} == {""}


SPOILERS = [
    (
        {f"{CPU}__cpu1__cpufreq__scaling_governor": "powersave\n"},
        "governor",
        "warning",
        "powersave on 1 cores",
        "echo performance",
    ),
    (
        {f"{CPU}__intel_pstate__no_turbo": "0\n"},
        "turbo",
        "note",
        "on",
        "echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo",
    ),
    ({f"{CPU}__smt__active": "1\n"}, "smt", "note", "on", "smt/control"),
    ({f"{CPU}__online": "0-7\n"}, "affinity", "note", "2 of 8 cores", "taskset"),
    ({"sys__devices__system__node__node1__cpulist": "2-3\n"}, "numa", "note", "2 nodes", "numactl"),
    ({f"{CLOCK}__current_clocksource": "hpet\n"}, "time source", "warning", "hpet", "echo tsc"),
    (
        {"sys__kernel__mm__transparent_hugepage__enabled": "[always] madvise never\n"},
        "huge pages",
        "note",
        "always",
        "echo madvise",
    ),
    (
        {"proc__meminfo": MEMORY.format(available=8388608, swap=2097152)},
        "swap",
        "warning",
        "2.0 GiB of 4.0 GiB",
        "swapoff",
    ),
    (
        {"proc__meminfo": MEMORY.format(available=1048576, swap=4194304)},
        "free memory",
        "warning",
        "1.0 GiB of 16.0 GiB",
        "ps -eo",
    ),
    ({"sys__fs__cgroup__cpu.max": "150000 100000\n"}, "cpu quota", "warning", "1.5 cores", "--cpuset-cpus"),
    ({"sys__fs__cgroup__memory.max": "8589934592\n"}, "memory limit", "note", "8.0 GiB of 16.0 GiB", "--memory"),
    ({"proc__cpuinfo": "flags\t: fpu hypervisor\n"}, "hypervisor", "warning", "20.0%", "virtual machine"),
    (
        {
            "sys__class__power_supply__BAT0__type": "Battery\n",
            "sys__class__power_supply__BAT0__status": "Discharging\n",
        },
        "power supply",
        "warning",
        "on battery",
        "plug it in",
    ),
    ({"proc__pressure__cpu": ""}, "pressure (PSI)", "note", "cannot be read", "psi=1"),
]


@pytest.mark.parametrize(("changes", "check", "severity", "says", "fix"), SPOILERS, ids=[s[1] for s in SPOILERS])
def test_one_spoiler_is_found_alone_with_what_fixes_it(
    tmp_path: Path, changes: dict[str, str], check: str, severity: str, says: str, fix: str
) -> None:
    found = findings(machine(tmp_path, **changes))
    assert [name for name, finding in found.items() if finding.severity != "ok"] == [check]
    assert found[check].severity == severity
    assert says in found[check].found
    assert found[check].why
    assert fix in found[check].fix


def test_a_plugged_in_notebook_and_the_battery_of_a_mouse_are_no_spoilers(tmp_path: Path) -> None:
    supply = "sys__class__power_supply"
    changes = {f"{supply}__BAT0__type": "Battery\n", f"{supply}__BAT0__status": "Charging\n"}
    mouse = {f"{supply}__hid__type": "Battery\n", f"{supply}__hid__status": "Discharging\n"}
    mouse[f"{supply}__hid__scope"] = "Device\n"
    assert findings(machine(tmp_path, **changes, **mouse))["power supply"].severity == "ok"


def test_inside_a_container_the_command_is_for_the_machine_outside(tmp_path: Path) -> None:
    root = machine(tmp_path, **{f"{CPU}__smt__active": "1\n", ".dockerenv": ""})
    assert findings(root)["smt"].fix.startswith("outside the container: echo off")


def test_an_empty_machine_is_examined_and_nothing_of_it_is_called_fine(tmp_path: Path) -> None:
    found = findings(tmp_path)
    assert {check: finding.severity for check, finding in found.items()} == dict.fromkeys(
        ("governor", "affinity", "swap", "free memory", "pressure (PSI)"), "note"
    )
    assert "not known: /proc/meminfo does not tell" in {finding.found for finding in found.values()}


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({f"{CPU}__cpu0__cpufreq__scaling_governor": "", f"{CPU}__cpu1__cpufreq__scaling_governor": ""}, "governor"),
        ({f"{CPU}__online": ""}, "affinity"),
        ({f"{CPU}__online": "all"}, "affinity"),
        ({"proc__self__status": "Name:\tcmp\n"}, "affinity"),
        ({"proc__meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n"}, "swap"),
        ({"proc__meminfo": "MemTotal: 16777216 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"}, "free memory"),
        ({"proc__meminfo": MEMORY.format(available="many", swap=4194304)}, "free memory"),
        ({"proc__cpuinfo": "flags\t: fpu hypervisor\n", "proc__stat": ""}, "hypervisor"),
        ({"proc__cpuinfo": "flags\t: fpu hypervisor\n", "proc__stat": "cpu\n"}, "hypervisor"),
        ({"proc__cpuinfo": "flags\t: fpu hypervisor\n", "proc__stat": "cpu a b c d e f g h i\n"}, "hypervisor"),
        ({"sys__kernel__mm__transparent_hugepage__enabled": "always madvise never\n"}, "huge pages"),
        ({"sys__class__power_supply__BAT0__type": "Battery\n"}, "power supply"),
        (
            {
                "sys__class__power_supply__BAT0__type": "Battery\n",
                "sys__class__power_supply__BAT0__status": "Unknown\n",
            },
            "power supply",
        ),
    ],
)
def test_what_cannot_be_learned_is_not_called_fine(tmp_path: Path, changes: dict[str, str], check: str) -> None:
    found = findings(machine(tmp_path, **changes))
    assert [name for name, finding in found.items() if finding.severity != "ok"] == [check]
    assert found[check].severity == "note"
    assert found[check].found.startswith(("not known: ", "cannot be seen: "))
    assert found[check].why
    assert found[check].fix


def test_cores_that_a_control_group_keeps_are_not_asked_of_taskset(tmp_path: Path) -> None:
    held = {f"{CPU}__online": "0-7\n", "sys__fs__cgroup__cpuset.cpus.effective": "0-1\n"}
    assert "docker run --cpuset-cpus" in findings(machine(tmp_path / "held", **held))["affinity"].fix
    free = {f"{CPU}__online": "0-7\n", "sys__fs__cgroup__cpuset.cpus.effective": "0-7\n"}
    assert findings(machine(tmp_path / "free", **free))["affinity"].fix.endswith(": taskset -c 0-7 cmp run")


def test_other_work_is_a_warning() -> None:
    assert background(Busyness(0.0, 0.0, 0.1)).severity == "ok"
    assert background(Busyness(None, None, 0.1)).severity == "note"
    assert background(Busyness(None, 0.5, 0.1)).severity == "warning"
    assert background(Busyness(1.5, 0.0, 2.0)).severity == "warning"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "max 100000\n"}, None),
        ({"proc__self__cgroup": "0::/a/b\n", "sys__fs__cgroup__a__cpu.max": "250000 100000\n"}, 2.5),
        # The path of the machine outside, seen from a container whose own folder is the mounted root.
        ({"proc__self__cgroup": "0::/docker/abc\n", "sys__fs__cgroup__cpu.max": "50000 100000\n"}, 0.5),
        (
            {
                "proc__self__cgroup": "4:cpu,cpuacct:/a\n0::/\n",
                "sys__fs__cgroup__cpu,cpuacct__a__cpu.cfs_quota_us": "300000\n",
                "sys__fs__cgroup__cpu,cpuacct__a__cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            {
                "proc__self__cgroup": "1:cpu:/\n",
                "sys__fs__cgroup__cpu__cpu.cfs_quota_us": "-1\n",
                "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_the_quota_of_both_versions_of_control_groups(
    tmp_path: Path, files: dict[str, str], cores: float | None
) -> None:
    plant(tmp_path, **files)
    assert cpu_quota_cores(tmp_path) == cores


def test_the_memory_limit_of_version_1_and_its_way_to_say_none(tmp_path: Path) -> None:
    plant(tmp_path, proc__self__cgroup="4:memory:/\n")
    folder = tmp_path / "sys/fs/cgroup/memory"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_limit_bytes(tmp_path) is None
    (folder / "memory.limit_in_bytes").write_text("1073741824\n")
    assert memory_limit_bytes(tmp_path) == 2**30


ASK = """
import json
from enginecmp.doctor.gpu import gpus
print(json.dumps([[finding.check, finding.severity, finding.found, finding.fix] for finding in gpus()]))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The replayed NVML, compiled once."""
    return nvml_replay.build(tmp_path_factory.mktemp("nvml"))


@pytest.mark.skipif(nvml_replay.COMPILER is None, reason="no C compiler to build the replayed NVML with")
def test_what_is_wrong_with_a_gpu_is_found(library: Path, tmp_path: Path) -> None:

    def ask(**changes: str) -> dict[str, list[str]]:
        env = nvml_replay.environment(library, tmp_path / "script", changes)
        done = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, check=True)
        return {check: rest for check, *rest in json.loads(done.stdout)}

    assert {severity for severity, *_ in ask().values()} == {"ok"}
    found = ask(
        nvmlDeviceGetPersistenceMode="1 0 0",
        nvmlDeviceGetEnforcedPowerLimit="1 0 500000",
        nvmlDeviceGetEccMode="1 0 1 0",
        nvmlDeviceGetMigMode="1 0 1 1",
        nvmlDeviceGetComputeRunningProcesses_v3=f"1 0 {os.getpid()}",
        nvmlDeviceGetCurrentClocksEventReasons="1 0 65",
    )
    assert {check: severity for check, (severity, *_) in found.items()} == {
        "gpu0 persistence": "warning",
        "gpu0 power limit": "warning",
        "gpu0 ecc": "warning",
        "gpu0 partitions (MIG)": "note",
        "gpu0 processes": "warning",
        "gpu0 throttling": "warning",
    }
    assert "500 W, the GPU's default is 700 W" in found["gpu0 power limit"][1]
    assert found["gpu0 power limit"][2] == "sudo nvidia-smi -i 0 -pl 700"
    assert "hardware thermal slowdown" in found["gpu0 throttling"][1]
    assert "does not answer" in ask(nvmlDeviceGetHandleByIndex_v2="1 15")["gpu0"][1]
    assert ask(nvmlDeviceGetCount_v2="1 0 0")["gpu"][:2] == ["note", "not known: the driver answers, and shows none"]
    forbidden = ask(nvmlDeviceGetPersistenceMode="1 4")["gpu0 persistence"]
    assert forbidden[:2] == ["note", "not known: Insufficient Permissions"]
    assert "gpu0 ecc" not in ask(nvmlDeviceGetEccMode="1 3")  # a board without ECC


# What nvml.h calls these numbers, and the words that the advice for each must and must not hold.
@pytest.mark.parametrize(
    ("code", "says", "advises"),
    [
        (4, "Insufficient Permissions", "ls -l /dev/nvidia*"),
        (8, "Insufficient External Power", "power cables"),
        (9, "Driver Not Loaded", "modprobe nvidia"),
        (15, "GPU is lost", "restart the machine"),
        (16, "", "sudo nvidia-smi --gpu-reset"),
        (18, "NVML/RM version mismatch", "restart the machine: the driver was updated"),
        (999, "Unknown Error", "sudo dmesg"),
    ],
)
@pytest.mark.parametrize("where", ["nvmlInitWithFlags", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetCount_v2"])
@pytest.mark.skipif(nvml_replay.COMPILER is None, reason="no C compiler to build the replayed NVML with")
def test_an_error_of_the_driver_is_never_fine_and_its_advice_fits(
    where: str, code: int, says: str, advises: str, library: Path, tmp_path: Path
) -> None:
    env = nvml_replay.environment(library, tmp_path / "script", {where: f"1 {code}"})
    done = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, check=True)
    ((_, severity, found, fix),) = json.loads(done.stdout)
    assert severity == "warning"
    assert says in found
    assert advises in fix
    assert ("gpu-reset" in fix) == (code == 16)


@pytest.mark.skipif(nvml_replay.COMPILER is None, reason="no C compiler to build the replayed NVML with")
def test_a_driver_that_hangs_is_a_warning_and_holds_nobody_up_twice(library: Path, tmp_path: Path) -> None:
    env = nvml_replay.environment(library, tmp_path / "script")
    os.mkfifo(tmp_path / "never")  # the replayed driver opens its script, and waits for its writer
    ask = """
from enginecmp.telemetry import nvml_asked
from enginecmp.machine.environment import describe_environment
nvml_asked.ANSWER_SECONDS = 0.2
print(json.dumps(describe_environment()))
"""
    command = [sys.executable, "-c", "import json" + ask + ASK]
    hangs = {**env, "NVML_REPLAY": str(tmp_path / "never")}
    done = subprocess.run(command, env=hangs, capture_output=True, text=True, timeout=60, check=True)
    facts, ((check, severity, found, fix),) = map(json.loads, done.stdout.splitlines())
    assert facts["gpu"] is None
    assert facts["gpu_reason"] == "nvml: the driver hangs: no answer within 0.2 s"
    assert (check, severity) == ("gpu", "warning")
    assert found == "the driver hangs: no answer within 0.2 s"
    assert "sudo dmesg" in fix


@pytest.mark.skipif(nvml_replay.COMPILER is None, reason="no C compiler to build the replayed NVML with")
def test_a_driver_that_crashes_ends_the_process_that_asked_it_and_no_other(library: Path, tmp_path: Path) -> None:
    env = nvml_replay.environment(library, tmp_path / "script", {"nvmlDeviceGetCount_v2": "1 -11"})
    ask = """
from enginecmp.machine.environment import describe_environment
print(json.dumps(describe_environment()))
"""
    done = subprocess.run([sys.executable, "-c", "import json" + ask + ASK], env=env, capture_output=True, check=True)
    facts, ((check, severity, found, fix),) = map(json.loads, done.stdout.splitlines())
    assert facts["gpu"] is None
    assert facts["gpu_reason"] == "nvml: the process that asked the driver was killed by SIGSEGV"
    assert (check, severity) == ("gpu", "warning")
    assert found == "the process that asked the driver was killed by SIGSEGV"
    assert "sudo dmesg" in fix


def test_no_driver_is_fine_only_where_no_gpu_of_nvidia_shows(tmp_path: Path) -> None:
    def of(error: Exception, **files: str) -> Finding:
        root = tmp_path / str(len(files))
        plant(root, proc__cpuinfo="", **files)
        absent = SensorAbsent("nvml: there is no libnvidia-ml.so.1, so no NVIDIA driver on this machine")
        absent.__cause__ = error
        return gpu._unasked(absent, root)

    device = "sys__bus__pci__devices__0000:01:00.0__"
    assert of(OSError()).severity == "ok"
    assert of(ModuleNotFoundError()).severity == "note"
    sound = of(
        OSError(), **{f"{device}vendor": "0x10de\n", f"{device}class": "0x040300\n", "proc__x": "", "proc__y": ""}
    )
    assert sound.severity == "ok"
    seen = of(OSError(), **{f"{device}vendor": "0x10de\n", f"{device}class": "0x030200\n"})
    assert seen.severity == "note"
    assert seen.found.startswith("not known: there is an NVIDIA GPU, and there is no libnvidia-ml.so.1")
    assert of(OSError(), proc__driver__nvidia__version="NVRM\n").severity == "note"


def test_the_command_prints_a_table_and_json_and_ends_well(cmp: CommandLine) -> None:
    table = cmp("doctor")
    assert table.returncode == 0, table.stderr
    assert "swap" in table.stdout
    document = json.loads(cmp("doctor", "--json").stdout)
    assert {"check", "severity", "found", "why", "fix"} == set(document["findings"][0])
    assert {finding["severity"] for finding in document["findings"]} <= {"ok", "note", "warning"}


def test_every_run_keeps_the_findings(cmp: CommandLine, tmp_path: Path, tiny: ModelInfo) -> None:
    scenario = tmp_path / "mini.toml"
    scenario.write_text(
        'name = "mini"\nprimary_metric = "ttft_seconds"\n[[cells]]\nprompt_tokens = 8\noutput_tokens = 2\n'
        "[profile.full]\nblocks = 1\nrequests = 1\n"
    )
    done = cmp("run", "--scenario", scenario, "--model", tiny.path, "--no-gate", "--engines", "fake")
    assert done.returncode == 0, done.stderr
    kept = read_manifest(only_run(tmp_path / "results")).environment["doctor"]
    assert {"check", "severity", "found"} == set(kept[0])
    assert "swap" in {finding["check"] for finding in kept}
