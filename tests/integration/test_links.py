"""The links of README and docs to other sites are not dead; those between files are `test_docs`'s."""

from __future__ import annotations

import http.client
import http.server
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((https?://[^)#\s]+)|<(https?://[^>#\s]+)>")
CODE = re.compile(r"^(```|~~~)[^\n]*\n.*?^\1[^\n]*$|`[^`\n]+`", re.M | re.S)
TIMEOUT_S = 10
AT_ONCE = 4
THERE = (403, 429)
"""Answers of sites that turn a program away: the page is there."""
NO_ANSWER = "no answer"


def links(text: str) -> list[str]:
    """The addresses that a document links to, without what stands in code."""
    return [first or second for first, second in LINK.findall(CODE.sub("", text))]


def fault(address: str) -> str:
    """What is wrong with an address, empty where it is there: asked for its head, then whole, as some sites know no HEAD."""
    found = ""
    for method in ("HEAD", "GET"):
        request = urllib.request.Request(address, method=method, headers={"User-Agent": "Mozilla/5.0 (is the link there?)"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                return ""
        except urllib.error.HTTPError as error:
            if error.code in THERE:
                return ""
            found = f"answers {error.code}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            found = f"{NO_ANSWER} ({error})"
    return found


@pytest.mark.slow
def test_every_link_to_another_site_leads_somewhere() -> None:
    wanted = sorted({address for path in TEXTS for address in links(path.read_text())})
    assert wanted
    with ThreadPoolExecutor(AT_ONCE) as pool:
        first = list(pool.map(fault, wanted[:AT_ONCE]))
        if all(text.startswith(NO_ANSWER) for text in first):
            pytest.skip(f"no network here: {wanted[0]} and {AT_ONCE - 1} more gave no answer: {first[0]}")
        found = dict(zip(wanted, [*first, *pool.map(fault, wanted[AT_ONCE:])], strict=True))
    assert not {address: text for address, text in found.items() if text}


def test_links_are_found_once_in_the_text_and_not_in_code() -> None:
    text = "[a](https://a.example/x#part) <http://b.example> `[c](https://c.example)`\n```\n[d](https://d.example)\n```\n[e](docs/e.md)"
    assert links(text) == ["https://a.example/x", "http://b.example"]


class Site(http.server.BaseHTTPRequestHandler):
    """/missing is not there, /shy turns programs away, /get knows no HEAD."""

    def do_HEAD(self) -> None:
        self.send_response({"/missing": 404, "/shy": 403, "/get": 405}.get(self.path, 200))
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_dead_link_is_told_from_one_that_turns_programs_away_and_from_silence(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert [fault(site + path) for path in ("/", "/shy", "/get")] == ["", "", ""]
    assert fault(f"{site}/missing") == "answers 404"
    assert fault("http://127.0.0.1:1/").startswith(NO_ANSWER)
