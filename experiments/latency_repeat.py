"""Does a later remeasurement fall inside the interval? The same networks, measured in fresh processes, one after another.

    python experiments/latency_repeat.py --sessions 8
    python experiments/latency_repeat.py --sessions 8 --space search_spaces/hybrid_tiny.yaml --networks 6 --seed 0

Each session is a new process that measures every network once, in an order of its own. The table has, for each network,
the coefficient of variation of the medians, the largest difference of two measurements of the same network (A/A), and
the coverage: how often session j's median lies inside session i's interval, over all ordered pairs (goal: 90 %). Run it on
a machine that does nothing else; "stable" is the share of measurements with that verdict.
The root mean square of the coefficients of variation is what
nasvit.devices.stats.SESSION_SPREAD must cover.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
from itertools import combinations, permutations
from statistics import fmean, median, stdev
from typing import Any

Measured = list[dict[str, Any]]


def plain_networks(seed: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Name to (module, input shape): convolutions and attention, from about 0.2 to 50 ms."""
    import torch
    from torch import nn

    def convolutions(depth: int, width: int) -> nn.Module:
        body = [layer for _ in range(depth) for layer in (nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())]
        return nn.Sequential(nn.Conv2d(3, width, 4, stride=4), *body)

    class Tokens(nn.Module):
        """A patch embedding and encoder layers on (B, N, C)."""

        def __init__(self, depth: int, width: int) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, width, 4, stride=4)
            kind = {"batch_first": True, "norm_first": True}
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, 4, 2 * width, **kind) for _ in range(depth))

        def forward(self, x: Any) -> Any:
            x = self.embed(x).flatten(2).transpose(1, 2)
            for layer in self.layers:
                x = layer(x)
            return x

    torch.manual_seed(seed)
    sizes = {"conv-small": (convolutions(3, 16), 32), "conv-mid": (convolutions(6, 48), 64), "conv-large": (convolutions(8, 96), 160),
             "attention-small": (Tokens(2, 32), 32), "attention-mid": (Tokens(4, 64), 64), "attention-large": (Tokens(6, 128), 96)}
    return {name: (module, (1, 3, size, size)) for name, (module, size) in sizes.items()}


def sampled_networks(space: str, *, networks: int, seed: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Name to (module, input shape) of architectures sampled from a space."""
    from nasvit.models.build import build
    from nasvit.space import SearchSpace

    rng = random.Random(seed)
    archs = [SearchSpace.load(space).sample(rng) for _ in range(networks)]
    return {arch.id: (build(arch, seed=seed), (1, arch.in_channels, *arch.image_size)) for arch in archs}


def session(options: argparse.Namespace) -> None:
    """One fresh process: prints the LatencyStats of every network as JSON."""
    from nasvit.devices import open_device

    nets = (sampled_networks(options.space, networks=options.networks, seed=options.seed) if options.space
            else plain_networks(options.seed))
    separator = "&" if "?" in options.device else "?"  # an unstable figure is a row of the table, not the end of the session
    device = open_device(f"{options.device}{separator}noise=keep", reference_ms=options.reference_ms)
    order = random.Random(options.session).sample(sorted(nets), len(nets))
    print(json.dumps({name: device.measure(nets[name][0], input_shape=nets[name][1]).to_dict() for name in order}))


def row(name: str, stats: Measured) -> dict[str, Any]:
    """One line of the table from all sessions of one network."""
    medians = [s["median_ms"] for s in stats]
    middle = fmean(medians)
    inside = [a["ci_low_ms"] <= b["median_ms"] <= a["ci_high_ms"] for a, b in permutations(stats, 2)]
    widths = median((s["ci_high_ms"] - s["ci_low_ms"]) / 2 / s["median_ms"] for s in stats)
    return {"network": name, "ms": middle, "cv": stdev(medians) / middle,
            "a_a": max(abs(a - b) / min(a, b) for a, b in combinations(medians, 2)),
            "half_width": widths, "coverage": fmean(inside), "stable": fmean(s["verdict"] == "stable" for s in stats)}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, and the figures over all networks."""
    lines = [f"{'network':18s} {'ms':>8s} {'CV':>7s} {'A/A max':>8s} {'+-':>7s} {'covered':>8s} {'stable':>7s}"]
    lines += [f"{r['network']:18s} {r['ms']:8.3f} {r['cv']:7.2%} {r['a_a']:8.2%} "
              f"{r['half_width']:7.2%} {r['coverage']:8.1%} {r['stable']:7.0%}"
              for r in rows]
    spread = math.sqrt(fmean(r["cv"] ** 2 for r in rows))
    lines.append(f"all: coverage {fmean(r['coverage'] for r in rows):.1%}, between sessions (root mean square of CV) {spread:.2%}")
    return "\n".join(lines)


def main() -> None:
    """Calibrate once, run the sessions, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--space")
    parser.add_argument("--networks", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--session", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--reference-ms", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.session is not None:
        session(options)
        return
    from nasvit.devices import open_device

    scale = open_device(options.device).calibrate()
    collected: dict[str, Measured] = {}
    for number in range(options.sessions):
        command = [sys.executable, __file__, *sys.argv[1:], "--session", str(number), "--reference-ms", str(scale)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for name, stats in json.loads(out.strip().splitlines()[-1]).items():
            collected.setdefault(name, []).append(stats)
    print(f"reference {scale:.3f} ms, {options.sessions} sessions")
    print(table([row(name, stats) for name, stats in sorted(collected.items(), key=lambda item: item[1][0]["median_ms"])]))


if __name__ == "__main__":
    main()
