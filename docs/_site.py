"""MkDocs hook: what the documents link to outside docs/ (a space, an example, a published table) becomes a page of the site.

The same relative links work where the files are read in the repository. Code is shown as code, a notebook cell by cell; pictures and tables
of numbers are there as they are.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.M | re.S)
ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RAW = (".png", ".svg", ".html", ".json", ".csv")
PLACE = "repository"
"""Folder of the site that holds the files from outside docs/."""


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file outside docs/ that a document, or such a page, links to."""
    waiting, seen = [DOCS / file.src_uri for file in files.documentation_pages()], set()
    while waiting:
        source = waiting.pop()
        for target in map(_page_of, _targets(source)):
            if target is not None and target not in seen and DOCS not in target.parents:
                seen.add(target)
                what = {"abs_src_path": str(target)} if target.suffix in RAW else {"content": _content(target)}
                files.append(File.generated(config, _uri(target), **what))
                if target.suffix == ".md":
                    waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links that leave docs/, or come back from outside, into links between pages of the site."""
    uri = page.file.src_uri
    source = ROOT / uri.removeprefix(f"{PLACE}/") if uri.startswith(f"{PLACE}/") else DOCS / uri

    def turned(match: re.Match[str]) -> str:
        target = _page_of((source.parent / match[2]).resolve())
        if target is None or (DOCS in target.parents and DOCS in source.parents):
            return match[0]
        to = target.relative_to(DOCS).as_posix() if DOCS in target.parents else _uri(target)
        return f"{match[1]}{os.path.relpath(to, PurePosixPath(uri).parent)}{match[3] or ''}{match[4]}"

    if source.suffix != ".md":
        return markdown
    done, at = "", 0
    for code in FENCE.finditer(markdown):  # code keeps what looks like a link
        done += LINK.sub(turned, markdown[at : code.start()]) + code[0]
        at = code.end()
    return done + LINK.sub(turned, markdown[at:])


def _targets(source: Path) -> list[Path]:
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    return [(source.parent / match[2]).resolve() for match in LINK.finditer(FENCE.sub("", text))]


def _page_of(target: Path) -> Path | None:
    """The file that stands for a target inside the repository: of a folder its README; None for what is not there."""
    if target.is_dir():
        target = target / "README.md"
    return target if ROOT in target.parents and target.is_file() else None


def _uri(target: Path) -> str:
    path = target.relative_to(ROOT).as_posix()
    return f"{PLACE}/{path}" if target.suffix in (".md", *RAW) else f"{PLACE}/{path}.md"


def _content(target: Path) -> str:
    text = target.read_text(encoding="utf-8")
    if target.suffix == ".md":
        return text
    if target.suffix == ".ipynb":
        cells = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in json.loads(text)["cells"]]
        return "\n\n".join(f"```python\n{source}\n```" if code else source for source, code in cells)
    kind = {".py": "python", ".yaml": "yaml", ".toml": "toml"}.get(target.suffix, "text")
    return f"# {target.relative_to(ROOT).as_posix()}\n\n````{kind}\n{text}\n````\n"
