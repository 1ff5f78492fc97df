"""A device, a GPU or the emulator, behind one API: memory, modules, launches, graphs, events."""

from .building import build
from .device import Device, open_device
from .driver import DriverError, LostDeviceError, OutOfMemoryError
from .graph import Capture, Event, Graph
from .memory import Memory, Pinned
from .module import Kernel, Launch, Module

__all__ = [
    "Capture",
    "Device",
    "DriverError",
    "Event",
    "Graph",
    "Kernel",
    "Launch",
    "LostDeviceError",
    "Memory",
    "Module",
    "OutOfMemoryError",
    "Pinned",
    "build",
    "open_device",
]
