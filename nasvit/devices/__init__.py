"""Devices: where latency is measured. A new place is one file and one line here."""

from nasvit.devices import local  # noqa: F401 (importing registers)
from nasvit.devices.base import DEVICES, Device, open_device
from nasvit.devices.lock import machine_lock
from nasvit.devices.stats import LatencyStats

__all__ = ["DEVICES", "Device", "LatencyStats", "machine_lock", "open_device"]
