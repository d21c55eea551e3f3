"""A Ray cluster: the same search, its trainings spread over machines.

    ray get-auth-token --generate                               # ~/.ray/auth_token, to be copied to every machine
    export RAY_AUTH_MODE=token                                  # on every machine
    ray start --head --port 6379 --disable-usage-stats          # on the first
    ray start --address FIRST:6379 --disable-usage-stats        # on each other one
    python examples/ray_cluster.py --address FIRST:6379 --workers 8

Every machine needs nasvit with the same versions; the data travel from this one. A worker takes one core, and with
`--gpus-per-worker 0.5` half a GPU. Latencies are this driver's or, with `--device ssh://..`, another machine's: a cluster's own cores are
busy. docs/cluster.md has the rest. Without `--address` a cluster on this machine alone is started and ended with the search.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nasvit
from nasvit import cli


def main(arguments: list[str] | None = None) -> int:
    """Returns how many architectures were evaluated."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", help="HOST:PORT of the head, or auto on the head itself; none: a cluster of this machine alone")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus-per-worker", type=float, default=0.0)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--space", default="hybrid_tiny")
    parser.add_argument("--device", default="cpu", help="where latency is measured")
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("ray_cluster"))
    given = parser.parse_args(arguments)
    words = ["search", "--data", given.data, "--space", given.space, "--device", given.device, "--budget", str(given.budget),
             "--engine", "ray", "--workers", str(given.workers), "--out", str(given.out)]
    if given.address:
        words += ["--ray-address", given.address]
    if given.gpus_per_worker:
        words += ["--gpus-per-worker", str(given.gpus_per_worker)]
    if cli.main(words) != 0:
        sys.exit(1)
    trials = nasvit.load(given.out).trials
    print(f"{len(trials)} trials in {given.out}; the same command with `--resume` in `nasvit search --resume --out {given.out}` goes on")
    return int((trials["status"] == "complete").sum())


if __name__ == "__main__":
    main()
