"""Reads golden cases and fills modules by the rule in their README: a tensor's value follows from its official name.

The folder comes from $NASVIT_GOLDEN (default: the shared folder beside the checkout). One JSON is one case.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

GOLDEN = Path(os.environ.get("NASVIT_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))


@dataclass(frozen=True)
class Case:
    """One reference output: `data` is the whole JSON."""

    name: str
    data: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        return self.data["config"]

    def input(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """RandomState(seed).standard_normal(shape) in float32, times `scale` where the case has one."""
        spec = self.data["input"]
        x = np.random.RandomState(spec["seed"]).standard_normal(spec["shape"]).astype(np.float32)
        return torch.from_numpy(x * np.float32(spec.get("scale", 1.0))).to(dtype)

    def weights(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Official name -> filled tensor, for every tensor that is not kept as built."""
        kept = set(self.data.get("kept", ()))
        kept_suffixes = ("num_batches_tracked", "relative_position_index", "attn_mask")
        return {name: fill(name, shape).to(dtype) for name, shape in self.data["state_dict"]
                if name not in kept and not name.endswith(kept_suffixes)}


def fill(name: str, shape: Iterable[int]) -> Tensor:
    """The value of the tensor with this official name (README: first matching row wins), float32."""
    shape = tuple(shape)
    rng = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    if name.endswith("running_mean"):
        value = 0.05 * rng.standard_normal(shape)
    elif name.endswith("running_var"):
        value = 1 + 0.2 * rng.random_sample(shape)
    elif len(shape) >= 2:
        value = 0.05 * rng.standard_normal(shape)
    elif len(shape) == 1 and name.endswith("weight"):
        value = 1 + 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        value = 0.05 * rng.standard_normal(shape)
    else:
        value = np.ones(())
    return torch.from_numpy(np.asarray(value, dtype=np.float64).astype(np.float32))


def cases(system: str, pattern: str = "*") -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: every case of a system whose file name matches, or one skip."""
    files = sorted((GOLDEN / system).glob(f"{pattern}.json"))
    if not files:
        reason = f"no golden cases {system}/{pattern} under {GOLDEN} (set NASVIT_GOLDEN)"
        return [pytest.param(None, id=f"{system}-absent", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(Case(name=f"{system}/{f.stem}", data=json.loads(f.read_text())), id=f"{system}-{f.stem}") for f in files]


def assert_matches(output: Tensor, reference: Mapping[str, Any], *, tolerance: float, scale: str = "max") -> None:
    """Compare every stored element; the error is relative to the largest stored magnitude, or to the stored std.

    Elements are stored with 9 digits: half a unit of the ninth can exceed 1e-8 of the std and is not held against us.
    """
    assert list(output.shape) == list(reference["shape"])
    flat = output.detach().double().flatten().numpy()
    first = np.asarray(reference.get("values", reference.get("first200")), dtype=np.float64)
    index = reference.get("sample_index", reference.get("sample_indices", []))
    expected = np.concatenate([first, np.asarray(reference.get("sample_values", []), dtype=np.float64)])
    got = np.concatenate([flat[: len(first)], flat[np.asarray(index, dtype=int)]])
    size = np.abs(expected).max() if scale == "max" else reference["std"]
    rounding = 0.5 * 10.0 ** (np.floor(np.log10(np.maximum(np.abs(expected), 1e-30))) - 8)
    error = np.maximum(np.abs(got - expected) - rounding, 0).max() / size
    assert error <= tolerance, f"relative error {error:.3g} > {tolerance:g}"
