"""Proxies, one file each. A new one is one file and one line here."""

from nasvit.proxies import short_train  # noqa: F401 (importing registers)
from nasvit.proxies.base import PROXIES, Proxy, Score

__all__ = ["PROXIES", "Proxy", "Score"]
