"""Peak memory of one inference, from the tensors that are alive: the same figure on every machine and in every run."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operators return: `now` bytes alive, `peak` the most at once. Views count nothing."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return out


def peak_bytes(module: nn.Module, image: Tensor) -> int:
    """Bytes of parameters, buffers, input and the most activations alive at once, in one forward of an eval module.

    A kernel's own scratch space is not seen.
    """
    with torch.no_grad(), LiveBytes([*module.parameters(), *module.buffers(), image]) as live:
        module(image)
    return live.peak
