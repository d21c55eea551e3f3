"""A Raspberry Pi by ssh: a search whose latencies are the Pi's, while the training stays on this machine.

    ssh pi@raspberrypi.local                                    # once by hand: accept the host key, have a key log in without a password
    ssh pi@raspberrypi.local pip install numpy onnxruntime      # all that the Pi needs
    python examples/raspberry_pi.py ssh://pi@raspberrypi.local --data photos/ --max-latency 30ms

Every network is exported, sent, and timed there beside a reference network; see docs/latency.md. At the end the chosen one is exported, and
its file lies in RUN/export: copy that folder to the Pi and run `python3 predict.py IMAGE`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nasvit
from nasvit import cli


def run(*words: str) -> None:
    """A command of nasvit; its message has been printed where it fails."""
    if cli.main(list(words)) != 0:
        sys.exit(1)


def main(arguments: list[str] | None = None) -> Path:
    """Returns the folder to copy to the Pi."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("device", help="ssh://USER@HOST[:PORT], with /RUNTIME?key=value where the defaults will not do")
    parser.add_argument("--data", default="digits", help="images, as for `nasvit search`")
    parser.add_argument("--space", default="hybrid_tiny")
    parser.add_argument("--max-latency", default="30ms")
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("raspberry_pi"))
    given = parser.parse_args(arguments)
    run("devices", "check", given.device)  # it answers, how fast it is, and whether it computes what torch computes
    run("search", "--data", given.data, "--space", given.space, "--device", given.device, "--max-latency", given.max_latency,
        "--budget", str(given.budget), "--out", str(given.out))
    run("measure", "--run", str(given.out))  # the front again, on the Pi: does every point lie inside its interval?
    run("export", str(given.out), "--pick", "best", "--device", given.device)
    best = nasvit.load(given.out).record("best")
    folder = given.out / "export" / f"{best.arch_id}-onnxruntime"
    latency = best.objectives["latency_ms"]
    print(f"{best.arch_id}: {best.objectives['accuracy']:.1%} of the validation images, {latency:.3g} ms on {given.device}; copy {folder}")
    return folder


if __name__ == "__main__":
    main()
