"""Devices: where latency is measured. A new place is one file and one line here."""

from nasvit.devices import local, remote  # noqa: F401 (importing registers)
from nasvit.devices.base import DEVICES, Device, Prepared
from nasvit.devices.lock import machine_lock
from nasvit.devices.opening import open_device
from nasvit.devices.stats import LatencyStats
from nasvit.devices.transport import DeviceFault

__all__ = ["DEVICES", "Device", "DeviceFault", "LatencyStats", "Prepared", "machine_lock", "open_device"]
