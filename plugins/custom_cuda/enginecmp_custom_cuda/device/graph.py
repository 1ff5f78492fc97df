"""Launches recorded once and run together, and events between them."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from enginecmp import EngineError

from .context import Context
from .driver import ENGINE


class Graph:
    """Recorded launches, instantiated and uploaded; parameters are those of the recording.

    Attributes:
        nodes: how many launches, copies and fills are in it.
    """

    def __init__(self, context: Context, recorded: Any) -> None:
        self._context = context
        self._closed = False
        try:
            _, self.nodes = context.call("cuGraphGetNodes", recorded, 0, expected="the nodes of a graph")
            self._executable = context.call("cuGraphInstantiate", recorded, 0, expected="a graph that can run")
        finally:
            context.release(recorded, "cuGraphDestroy", recorded)
        context.owned[id(self)] = self.close
        context.call("cuGraphUpload", self._executable, context.stream, expected="a graph on the device")

    def launch(self) -> None:
        """Run it after everything launched before."""
        context = self._context
        context.enter()
        if self._closed:
            msg = f"{ENGINE}: expected an open graph, got a closed one; capture it again"
            raise EngineError(msg)
        (status,) = context.driver.cuGraphLaunch(self._executable, context.stream)
        if status:
            raise context.failed(status, "a launch of a graph", "check what was captured")

    def close(self) -> None:
        """Let it go; twice is fine."""
        if not self._closed:
            self._closed = True
            self._context.release(self, "cuGraphExecDestroy", self._executable)


class Capture:
    """What `Device.capture` gives: inside `with`, launches, fills and copies on the device are recorded, not run.

    Attributes:
        graph: of what was recorded, from the end of the block on.
    """

    graph: Graph

    def __init__(self, context: Context) -> None:
        self._context = context

    def __enter__(self) -> Capture:
        context = self._context
        context.not_capturing("another capture")
        mode = context.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        context.call("cuStreamBeginCapture", context.stream, mode, expected="a stream that can be captured")
        context.capturing = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        context = self._context
        context.capturing = False
        if error is not None:
            # End it, or the stream stays in capture; what was recorded so far goes with the error.
            status, recorded = context.driver.cuStreamEndCapture(context.stream)
            if not int(status) and recorded is not None:
                context.release(recorded, "cuGraphDestroy", recorded)
            return
        recorded = context.call(
            "cuStreamEndCapture", context.stream, expected="a complete capture", fix="look for what ended it early"
        )
        self.graph = Graph(context, recorded)


class Event:
    """A point in the stream, with its time on the device; from `Device.event`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._closed = False
        flags = context.driver.CUevent_flags.CU_EVENT_DEFAULT
        self.handle = context.call("cuEventCreate", flags, expected="an event")
        context.owned[id(self)] = self.close

    def record(self) -> None:
        """Mark the point after everything launched so far."""
        self._context.call("cuEventRecord", self.handle, self._context.stream, expected="a recorded event")

    def wait(self) -> None:
        """Wait until the point is passed; one that was never recorded is."""
        self._context.not_capturing("a wait for an event")
        self._context.call("cuEventSynchronize", self.handle, expected="an event that happens")

    def seconds_until(self, last: Event) -> float:
        """Return the device's seconds from this event to a later one; waits for that.

        Raises:
            DriverError: one of the two was never recorded.
        """
        context = self._context
        context.not_capturing("a wait for an event")
        fix = "record both events first"
        context.call("cuEventSynchronize", last.handle, expected="an event that happens", fix=fix)
        milliseconds = context.call(
            "cuEventElapsedTime", self.handle, last.handle, expected="the time between two events", fix=fix
        )
        return float(milliseconds) / 1000

    def close(self) -> None:
        """Let it go; twice is fine."""
        if not self._closed:
            self._closed = True
            self._context.release(self, "cuEventDestroy", self.handle)
