"""Is the sibling verdict right? Twenty planted families around a pruned model of 5 ms and 80 %, the ones that the tests hold.

    python experiments/prune_siblings.py

Prints each case, the verdict's words, and how many are right. "unknown" is right where a sibling as fast has no known accuracy, and
where there is none to compare with.
"""

from __future__ import annotations

from nasvit.pruning.siblings import Measured, verdict
from tests.unit.pruning.test_siblings import PLANTED, at

WORDS = {True: "yes", False: "no", None: "unknown"}


def told(sibling: Measured) -> str:
    """Latency with its interval, and accuracy."""
    accuracy = "no weights" if sibling.accuracy is None else f"{sibling.accuracy:.2%}"
    return f"{accuracy} at {sibling.latency_ms:g} ms ({sibling.ci_low_ms:.2f} to {sibling.ci_high_ms:.2f})"


def main() -> None:
    right = 0
    print("| siblings of 80 % at 5 ms (4.75 to 5.25) | dominated | verdict |\n|---|---|---|")
    for siblings, dominated in PLANTED:
        found = verdict(at(5, 0.80, name="pruned"), siblings)
        right += found.dominated is dominated
        print(f"| {'; '.join(map(told, siblings)) or 'none'} | {WORDS[dominated]} | {WORDS[found.dominated]} |")
    print(f"\n{right} of {len(PLANTED)} right")


if __name__ == "__main__":
    main()
