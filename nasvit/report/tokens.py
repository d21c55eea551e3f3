"""The picture of the tokens in a report: of the network that a pruning gave, or of one of a search's front."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path

from nasvit.report.tables import Run

WORDS = ("on validation images, block after block: faded tokens are not kept (the share of those kept stands above them), merged ones show "
         "the mean of what they stand for, and clusters that attend to each other have a colour each.")
_PRUNED, _SEARCHED = "pruned/tokens.png", "tokens.png"
_PNG, _LARGEST = b"\x89PNG\r\n\x1a\n", 32 << 20
"""How the picture's file begins, and how many bytes it has at most: any other file is not ours, and is not put into a page."""
_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Tokens:
    """file: relative to the run; picture: its content as base64; words: of what network it is and how it is read."""

    file: str
    picture: str
    words: str


def tokens_of(run: Run) -> Tokens | None:
    """None where the run has no picture, or none that is ours."""
    if (run.path / "prune.json").exists():
        return _shown(run.path, _PRUNED, of="The pruned model")
    said = run.summary.get("tokens")
    if not isinstance(said, dict) or not _ID.fullmatch(str(said.get("arch_id"))):
        return None
    place = "the knee" if said.get("knee") is True else "of the front the most accurate that selects or clusters tokens"
    return _shown(run.path, _SEARCHED, of=f"Network {said['arch_id']}, {place},")


def _shown(run: Path, file: str, *, of: str) -> Tokens | None:
    """A PNG for a page that makes no request; none for anything else, and for a link, which may lead out of the run."""
    path = run / file
    if path.is_symlink() or path.parent.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST:
        return None
    data = path.read_bytes()
    return Tokens(file, base64.b64encode(data).decode(), f"{of} {WORDS}") if data.startswith(_PNG) else None
