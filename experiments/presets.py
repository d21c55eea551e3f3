"""Ready problems on the public tables: `--preset NAME --benchmarks FOLDER`. The first three are those of the tables' own baselines."""

from __future__ import annotations

from typing import Any

_NB201 = {"table": "nb201_hw/nb201_hw.parquet", "choices": tuple(f"edge{i}" for i in range(6)), "exclude": "disconnected"}
_BLOCKS = tuple((s, b) for s in range(5) for b in range(4))
_OFA = {
    "table": "ofa_mbv3_dynast/ofa_mbv3_dynast.parquet", "duplicates": "mean",
    "choices": (*(f"d{s}:ordinal" for s in range(5)), *(f"{kind}{4 * s + b:02}:ordinal" for s, b in _BLOCKS for kind in ("ks", "e"))),
    # a stage has 2 to 4 blocks: its third and fourth are asked where it is that deep
    "when": tuple(f"{kind}{4 * s + b:02}:d{s}={'3|4' if b == 2 else '4'}" for s, b in _BLOCKS if b >= 2 for kind in ("ks", "e")),
}


def _nb201(accuracy: str, *costs: str) -> dict[str, Any]:
    return {**_NB201, "objectives": (f"{accuracy}:max", *(f"{cost}:min" for cost in costs)), "known": costs}


PRESETS: dict[str, dict[str, Any]] = {
    "nb201-cifar100-gold": _nb201("cifar100_val_acc", "lat_ms_gold_6226"),
    "nb201-cifar10-titan-macs": _nb201("cifar10_val_acc", "lat_ms_titan_rtx_32", "macs"),
    "nb201-in16-pixel3": _nb201("in16_120_val_acc", "lat_ms_pixel3"),
    "nb201-cifar10-fpga": _nb201("cifar10_val_acc", "lat_ms_fpga"),
    "nb201-cifar100-eyeriss": _nb201("cifar100_val_acc", "lat_ms_eyeriss"),
    "nb201-in16-titanx": _nb201("in16_120_val_acc", "lat_ms_titanx_1"),
    "nb201-cifar100-params-macs": _nb201("cifar100_val_acc", "params", "macs"),
    "ofa-macs": {**_OFA, "objectives": ("imagenet_top1:max", "macs:min"), "known": ("macs",)},
    "ofa-macs-params": {**_OFA, "objectives": ("imagenet_top1:max", "macs:min", "params:min"), "known": ("macs", "params")},
}
"""nb201: complete tables. ofa: a pool of 2,223 evaluated subnets, its gaps filled by the nearest row."""
