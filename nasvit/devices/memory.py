"""Peak memory of one inference, from the tensors that are alive: the same figure on every machine and in every run."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nasvit.errors import MeasurementError


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operators return: `now` bytes alive, `peak` the most at once. Views count nothing.

    Raises MeasurementError from the operator that passes `limit` bytes.
    """

    def __init__(self, known: Iterable[Tensor], *, limit: float | None = None) -> None:
        super().__init__()
        self.limit = limit
        self._alive: dict[int, Any] = {}
        self.now = self.peak = 0
        for tensor in known:
            self.see(tensor)

    def see(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it dies."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def died(_: object) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, died)
        self.now += size
        self.peak = max(self.peak, self.now)
        if self.limit is not None and self.peak > self.limit:
            raise MeasurementError(f"the network needs over {self.limit / 1e6:.0f} MB, which is what the machine can give; "
                                   "use a smaller network, batch or image")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return out


def peak_bytes(module: nn.Module, image: Tensor, *, limit: float | None = None) -> int:
    """Bytes of parameters, buffers, input and the most activations alive at once, in one forward of an eval module.

    A kernel's own scratch space is not seen. Raises MeasurementError as soon as `limit` bytes are passed.
    """
    with torch.no_grad(), LiveBytes([*module.parameters(), *module.buffers(), image], limit=limit) as live:
        module(image)
    return live.peak
