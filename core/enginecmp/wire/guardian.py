"""The process between the host and one worker: it starts it, and leaves nothing of it behind.

Run by the path of this file, with the standard library alone, as

    python -I -S guardian.py STATUS_FD GUARD_FD PAUSES_FD LOG LOG_BEGINS COMMAND...

It is a subreaper: whatever the worker starts, in a session of its own or not, falls to it when its parent ends, and is
killed and reaped when the worker is over or the host is gone, by whatever signal. Four times a second it looks whether
the launch stood still, and whether its log has grown too large, once a second whether one of the worker's children
stands still; else it sleeps.

On STATUS_FD it says `started PID NANOSECONDS` or `failed ERRNO`, and later `ended STATUS PEAK_RSS_KILOBYTES`. GUARD_FD
is a pipe of which the host holds the other end.
"""

import contextlib
import ctypes
import mmap
import os
import select
import signal
import stat
import struct
import sys
import time

NAME = "cmp-guard"
"""Name of a guardian among the processes."""

PERIOD_SECONDS = 0.25
STANDSTILL_NS = 1_000_000_000
"""A guardian that did not run for that long beyond its period was not asleep: everything stood still."""

LOG_HEAD_BYTES = 1 << 20
LOG_TAIL_BYTES = 1 << 16
LOG_BYTES = 32 << 20
"""A launch's log that passes this keeps its head and its tail."""

_PR_SET_CHILD_SUBREAPER = 36
_END_SECONDS = 5.0
_FLOOD_SECONDS = 0.02
_CHILDREN_NS = 900_000_000
_MOST_CHILDREN = 64
_OPEN_END = (1 << 62) - 1


class Pauses:
    """When a launch stood still, in memory that guardian and host share; one writes, the other reads.

    Args:
        fd: a file descriptor of at least `SIZE` bytes.
    """

    _HEAD = struct.Struct("<qq")
    _PAUSE = struct.Struct("<qq")
    _MOST = 64
    SIZE = _HEAD.size + _MOST * _PAUSE.size

    def __init__(self, fd: int) -> None:
        self._map: mmap.mmap | bytearray = mmap.mmap(fd, self.SIZE)

    def beat(self, now_ns: int) -> None:
        """Write that the guardian ran."""
        struct.pack_into("<q", self._map, 0, now_ns)

    def note(self, start_ns: int, end_ns: int = _OPEN_END) -> int:
        """Write a pause and return its number; without an end it goes on."""
        beat_ns, number = self._HEAD.unpack_from(self._map, 0)
        self._PAUSE.pack_into(self._map, self._at(number), start_ns, end_ns)
        self._HEAD.pack_into(self._map, 0, beat_ns, number + 1)
        return int(number)

    def end(self, number: int, now_ns: int) -> None:
        """Write that a pause is over."""
        start_ns, _ = self._PAUSE.unpack_from(self._map, self._at(number))
        self._PAUSE.pack_into(self._map, self._at(number), start_ns, now_ns)

    def overlap(self, start_ns: int, end_ns: int, now_ns: int) -> bool:
        """Say whether the launch stood still at some moment between two; no system call.

        A guardian that has not run for too long by `now_ns` stood still since, or does so now.
        """
        beat_ns, number = self._HEAD.unpack_from(self._map, 0)
        if beat_ns and now_ns - beat_ns > STANDSTILL_NS + PERIOD_SECONDS * 1e9 and beat_ns <= end_ns:
            return True
        for late in range(number - 1, max(-1, number - 1 - self._MOST), -1):
            begun_ns, over_ns = self._PAUSE.unpack_from(self._map, self._at(late))
            if begun_ns <= end_ns and start_ns <= over_ns:
                return True
        return False

    def _at(self, number: int) -> int:
        return self._HEAD.size + number % self._MOST * self._PAUSE.size

    def close(self) -> None:
        """Unmap, and keep what was seen until now: what is asked later is asked about before."""
        if isinstance(self._map, mmap.mmap):
            shared, self._map = self._map, bytearray(self._map)
            shared.close()
            self.beat(0)


class LogCap:
    """Keeps a log that grows without end to its head and its tail.

    Writers append to it, so that it can be cut while they write; what they write meanwhile is at most lost.

    Args:
        path: of the log.
        begin: where this launch's part begins.
    """

    def __init__(self, path: str, begin: int) -> None:
        self._begin = begin
        self._cut = 0
        self._file = -1
        with contextlib.suppress(OSError):
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                self._file = -1

    @property
    def files(self) -> tuple[int, ...]:
        """The descriptors that it holds."""
        return () if self._file < 0 else (self._file,)

    def check(self) -> bool:
        """Cut the log where it is too large, and say whether it was."""
        if self._file < 0:
            return False
        with contextlib.suppress(OSError):
            size = os.fstat(self._file).st_size
            if size - self._begin <= LOG_BYTES:
                return False
            head = self._begin + LOG_HEAD_BYTES
            tail = os.pread(self._file, LOG_TAIL_BYTES, size - LOG_TAIL_BYTES)
            self._cut += size - LOG_TAIL_BYTES - head
            os.ftruncate(self._file, head)
            note = f"\n[cmp: about {self._cut} bytes were left out here: a log keeps its beginning and its end]\n"
            os.write(self._file, note.encode() + tail)
            return True
        return False


class Guardian:
    """Watches over one worker from its start to the end of everything that it started.

    Args:
        status: file descriptor for what the host is told.
        guard: becomes readable when the host is gone or wants the end.
        pauses: where standstills go.
        log: the launch's log.
    """

    def __init__(self, status: int, guard: int, pauses: Pauses, log: LogCap) -> None:
        self._status = status
        self._guard = guard
        self._pauses = pauses
        self._log = log
        self._worker = 0
        self._beat_ns = 0
        self._behind_ns = 0
        self._stopped: int | None = None  # number of the pause that goes on
        self._children_ns = 0

    def run(self, command: list[str], keep: tuple[int, ...]) -> int:
        """Start the command, and return when nothing of it is left."""
        _adopt_orphans()
        try:
            started_ns = time.perf_counter_ns()
            self._worker = os.posix_spawn(
                command[0],
                command,
                os.environ,
                setsid=True,
                setsigdef=(signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ),
            )
        except OSError as error:
            self._say(f"failed {error.errno}")
            return 1
        _prefer_for_oom(self._worker)
        self._say(f"started {self._worker} {started_ns}")
        _close_all_but(keep)
        # A terminal's Ctrl-C is for the host, which ends everybody else.
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
            file.write(NAME)
        self._watch()
        with contextlib.suppress(OSError):
            os.killpg(self._worker, signal.SIGKILL)
        _, status, usage = os.wait4(self._worker, 0)
        self._say(f"ended {status} {usage.ru_maxrss}")
        _end_children()
        self._log.check()
        return 0

    def _watch(self) -> None:
        """Sleep until the worker is over or the host wants the end."""
        ended = os.pidfd_open(self._worker)
        poll = select.poll()
        poll.register(self._guard, select.POLLIN)
        poll.register(ended, select.POLLIN)
        seconds = PERIOD_SECONDS
        while True:
            self._look()
            seconds = _FLOOD_SECONDS if self._log.check() else PERIOD_SECONDS
            ready = {fd for fd, _ in poll.poll(1000 * seconds)}
            if ready:  # nothing is ever written to the guard pipe: what can be read is its end
                self._look()
                return
            _reap_orphans(self._worker)

    def _look(self) -> None:
        """Note whether everything, or the worker alone, stood still since the last look."""
        now_ns = time.perf_counter_ns()
        # Of a suspended machine one clock counts the time, the other does not.
        behind_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        if self._beat_ns:
            late = now_ns - self._beat_ns > STANDSTILL_NS + PERIOD_SECONDS * 1e9
            if late or behind_ns - self._behind_ns > STANDSTILL_NS:
                self._pauses.note(self._beat_ns, now_ns)
        since_ns, self._beat_ns, self._behind_ns = self._beat_ns or now_ns, now_ns, behind_ns
        while (event := _stop_event(self._worker)) is not None:
            if event == os.CLD_CONTINUED:
                if self._stopped is not None:
                    self._pauses.end(self._stopped, now_ns)
                else:
                    self._pauses.note(since_ns, now_ns)
                self._stopped = None
            elif self._stopped is None:
                self._stopped = self._pauses.note(since_ns)
        if now_ns - self._children_ns > _CHILDREN_NS:
            if self._children_ns and self._stopped is None and _one_stopped(_below(self._worker)):
                self._pauses.note(self._children_ns, now_ns)
            self._children_ns = now_ns
        self._pauses.beat(now_ns)

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the host is gone
            os.write(self._status, f"{line}\n".encode())


def _stop_event(pid: int) -> int | None:
    """Return the next thing that stopped a child or let it go on; None when nothing did."""
    try:
        found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
    except ChildProcessError:
        return None
    return None if found is None else found.si_code


def _below(pid: int) -> list[int]:
    """Return the children of a process and theirs, not more than some; none where the kernel does not list them."""
    found: list[int] = []
    parents = [pid]
    while parents and len(found) < _MOST_CHILDREN:
        tasks = f"/proc/{parents.pop()}/task"
        with contextlib.suppress(OSError):
            for thread in os.listdir(tasks):
                with contextlib.suppress(OSError), open(f"{tasks}/{thread}/children", "rb") as file:
                    children = [int(text) for text in file.read(4096).split()]
                    found += children
                    parents += children
    return found[:_MOST_CHILDREN]


def _one_stopped(pids: list[int]) -> bool:
    """Say whether one of some processes was stopped by a signal."""
    for pid in pids:
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
            if file.read().rpartition(b")")[2].split()[0] in (b"T", b"t"):
                return True
    return False


def _adopt_orphans() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _prefer_for_oom(pid: int) -> None:
    """Ask the kernel to choose the worker, not the host, when memory runs out."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w") as file:
        file.write("1000")


def _close_all_but(keep: tuple[int, ...]) -> None:
    """Close what is the worker's alone: as long as it is open here, nobody sees that the worker closed it."""
    below = 0
    for fd in (*sorted(keep), 65536):
        os.closerange(below, fd)
        below = fd + 1


def _reap_orphans(worker: int) -> None:
    """Reap what fell to this process and has ended; the worker's end is looked at elsewhere."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid == worker:
            return
        os.waitpid(found.si_pid, 0)


def _end_children() -> None:
    """Kill and reap every child, and theirs, which become children here as their parents end."""
    end = time.monotonic() + _END_SECONDS
    while time.monotonic() < end:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in _children():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def _children() -> list[int]:
    me = b"%d" % os.getpid()
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
            # The name may hold blanks and brackets: fields count from behind it, the second is the parent.
            if file.read().rpartition(b")")[2].split()[1] == me:
                found.append(int(name))
    return found


def main(arguments: list[str]) -> int:
    """Guard one command."""
    status, guard, pauses = map(int, arguments[:3])
    for fd in (status, guard, pauses):
        os.set_inheritable(fd, False)
    log = LogCap(arguments[3], int(arguments[4]))
    guardian = Guardian(status, guard, Pauses(pauses), log)
    return guardian.run(arguments[5:], (status, guard, pauses, *log.files))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
