"""The contract of a proxy: it trains or inspects a network and scores it, at a cost the caller sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nasvit.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """value: higher is better. seconds: what it cost, without `waited`, those in which other work had the machine. details: losses, epochs,
    anything worth keeping in the record."""

    value: float
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    waited: float = 0.0


Proxy = Callable[..., Score]
"""`proxy(arch, *, budget: int, seed: int, data: DataSet, device: str) -> Score`; budget in training steps."""

PROXIES: Registry[Proxy] = Registry("proxy")
