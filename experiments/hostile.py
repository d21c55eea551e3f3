"""Hostile names and texts: where files are written because of a name, and what a report does with what it is told.

    python experiments/hostile.py names --times 10000       # every name that becomes a part of a path; no file may be made elsewhere
    python experiments/hostile.py page --times 500          # strings that would run in a page that believed them, in headless Chromium
    python experiments/hostile.py cells --times 500         # strings that a spreadsheet would run
    python experiments/hostile.py secrets                   # tokens in the environment, looked for in a run's files and log
"""

from __future__ import annotations

import argparse
import csv
import html
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any
from unittest import mock

from fault_search import HERE, Row, begin

sys.path.insert(0, str(HERE.parent))

from nasvit.errors import NasvitError
from nasvit.results.record import TrialRecord, append, from_line, read, to_line

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

# ---- names ------------------------------------------------------------------------------------------------------------

PIECES = (
    "..", ".", "/", "\\", "~", "a", "run", "etc", "passwd", "%2e%2e", "%2f", "\u2025", "\u2215", "\uff0e\uff0e", "\u202e", "\n", "\r",
    "\t", " ", ":", "C:", "con", "-rf", "--", "*", "?", "$(id)", "`id`", "${HOME}", ";", "|", "&", "'", '"', "\x00", "\x1b[2J", ".ssh",
    ".lock", "\ud800", "records.jsonl", "x" * 300, "é", "\U0001f600", "aux", ".safetensors", "checkpoints/", "timm:", "@", "=")


def names(*, times: int, seed: int) -> list[Row]:
    """Every hostile name through every place where a name becomes a part of a path, with real writes; then a look at what is where."""
    from nasvit.devices.agent import Refused

    rng, used, refused, escaped, traces = random.Random(seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run = root / "outer" / "run"
        run.mkdir(parents=True)
        for path in (root / "outer" / "secret", root / "secret"):
            path.write_text("untouched")
        for _ in range(times):
            name = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 6)))
            for use in _uses(run, name):
                try:
                    use()
                    used += 1
                except (NasvitError, Refused):
                    refused += 1
                except OSError:  # a name that the file system does not take
                    refused += 1
                except ValueError as error:  # what Python says of a zero byte or of half a sign, before any file is made
                    traces += not isinstance(error, UnicodeError) and "null" not in str(error)
                    refused += 1
            outside = [p for p in root.rglob("*") if p.is_file() and run not in p.parents and p.name != "secret"]
            escaped += len(outside)
            for path in outside:
                path.unlink()
            for place in run.iterdir():
                shutil.rmtree(place) if place.is_dir() else place.unlink()
        kept = [path.read_text() for path in (root / "outer" / "secret", root / "secret") if path.exists()]
    return [("hostile names", times), ("  used", used), ("  refused", refused), ("  files outside of the run directory", escaped),
            ("  other files lost or changed", 2 - kept.count("untouched")), ("  unexpected errors", traces)]


def _uses(run: Path, name: str) -> Iterator[Any]:
    """Each place where a name from a file or a command line becomes a part of a path."""
    from nasvit.commands import terminal
    from nasvit.devices.agent import Agent
    from nasvit.devices.spec import check_name
    from nasvit.finals.subject import Subject

    base: dict[str, Any] = {"trial": 0, "status": "complete", "rung": 1, "arch": None, "arch_id": "a"}

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("written")

    def of_record(**fields: Any) -> TrialRecord:
        return from_line(to_line(TrialRecord(**{**base, **fields})))

    def fresh() -> None:
        with mock.patch.object(terminal, "RUNS", run):
            write(terminal.fresh(f"2026-01-01-{Path(name).stem}-{Path(name).stem}") / "env.json")

    def put() -> None:
        agent = Agent.__new__(Agent)
        agent.folder = str(run)
        write(Path(agent.path(name)))

    def device() -> None:
        check_name(name)
        write(run / name)

    yield lambda: write(run / "train" / of_record(arch_id=name).arch_id / "metrics.json")
    yield lambda: (run / str(of_record(checkpoint=name).checkpoint)).unlink(missing_ok=True)
    yield lambda: write(run / str(of_record(checkpoint=name).checkpoint))
    yield lambda: write(run / "train" / Subject.of_model(f"timm:{name}").id / "metrics.json")
    yield fresh
    yield put
    yield device


# ---- texts ------------------------------------------------------------------------------------------------------------

MARK = "document.documentElement.setAttribute('data-ran','{n}')"
VECTORS = (
    "<script>{js}</script>", "</script><script>{js}</script>", "</title><script>{js}</script>", "</style><script>{js}</script>",
    "--><script>{js}</script>", "]]><script>{js}</script>", "<img src=x onerror=\"{js}\">", "<img/src=x/onerror={js}>",
    "<svg onload=\"{js}\">", "<svg><script>{js}</script></svg>", "<svg><animate onbegin=\"{js}\" attributeName=x dur=1s>",
    "<body onload=\"{js}\">", "<details open ontoggle=\"{js}\">x", "<input autofocus onfocus=\"{js}\">",
    "<video><source onerror=\"{js}\"></video>", "<iframe src=\"javascript:{js}\"></iframe>",
    "<iframe srcdoc=\"<script>parent.{js}</script>\"></iframe>", "<object data=\"javascript:{js}\">",
    "<a href=\"javascript:{js}\" autofocus>x</a>", "<math><mtext></form><form><mglyph><style></math><img src onerror=\"{js}\">",
    "\" onmouseover=\"{js}\" autofocus onfocus=\"{js}\" x=\"", "' onfocus='{js}' autofocus x='", "` onfocus=`{js}", "';{js};'",
    "\";{js};\"", "\\\";{js};//", "${{{js}}}", "{{{{ {js} }}}}", "{{% raw %}}<script>{js}</script>{{% endraw %}}",
    "{{{{''.__class__.__mro__}}}}<script>{js}</script>", "<meta http-equiv=refresh content=\"0;url=javascript:{js}\">",
    "<base href=\"javascript:{js}//\">", "<link rel=stylesheet href=\"data:,{js}\">", "\u003cscript\u003e{js}\u003c/script\u003e",
    "&lt;script&gt;{js}&lt;/script&gt;", "&#60;script&#62;{js}&#60;/script&#62;", "%3Cscript%3E{js}%3C/script%3E",
    "<scr\x00ipt>{js}</scr\x00ipt>", "<ScRiPt>{js}</sCrIpT>", "<script\n>{js}</script\n>", "<!--<script>{js}</script>-->",
    "<noscript><p title=\"</noscript><script>{js}</script>\">", "\u2028{js}\u2028", "*/{js}/*",
    "<template><script>{js}</script></template>", "<x onclick={js} autofocus tabindex=1 onfocus={js}>", "datum.url = 'javascript:{js}'",
    "signal: {js}", "[x](javascript:{js})", "<portal src=\"javascript:{js}\">")
WRAPS = ("{}", "name{}", "{} failed at step 3", "a\n{}", "\u202e{}", "({})", "'{}'", "\"{}\"", "{}|{}", "<b>{}</b>", "{}<!--", "{}\\")


def texts(times: int) -> list[str]:
    """So many different attacks, each of which would leave its number in the page."""
    def attack(n: int) -> str:
        return VECTORS[n % len(VECTORS)].format(js=MARK.format(n=n))

    return [WRAPS[n // len(VECTORS) % len(WRAPS)].replace("{}", attack(n)) for n in range(times)]


def page(*, times: int) -> list[Row]:
    """A report whose names, labels, reasons and facts are attacks, opened in a browser; and the same attacks in a page without defence."""
    from nasvit.report import render
    from tests.unit.report.make_run import write_run

    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("this experiment opens a page in chromium or chrome; install one")
    attacks = texts(times)
    with tempfile.TemporaryDirectory() as folder:
        path = write_run(Path(folder) / "run", trials=25)
        told(path, attacks)
        render(path)
        text = (path / "report.html").read_text(encoding="utf-8")
        plain = " ".join(text.replace("&#34;", "&quot;").replace("&#39;", "&#x27;").split())
        shown = sum(html.escape(" ".join(attack.split()))[:40] in plain for attack in attacks)
        ran, asked = opened(browser, path / "report.html", Path(folder) / "profile")
        control = Path(folder) / "control.html"
        control.write_text(f"<html><body>{VECTORS[6].format(js=MARK.format(n=1))}</body></html>")
        ran_there, _ = opened(browser, control, Path(folder) / "profile2")
    return [("hostile strings in the page", times), ("  of them shown as text", shown), ("  executed", int(ran)),
            ("  requests that the page tried", asked), ("an attack in a page without defence, executed", int(ran_there))]


def told(path: Path, attacks: list[str]) -> None:
    """Put every attack into a run: reasons of failed trials, labels of baselines, names of data, space, host, device and classes."""
    record = next(r for r in read(path / "records.jsonl") if r.status == "complete")
    for n, attack in enumerate(attacks):
        append(path / "records.jsonl", TrialRecord(trial=1000 + n, status="failed", rung=1, arch=record.arch, arch_id=record.arch_id,
                                                   reason=attack, label=attack, params={attack: attack}, versions={attack: attack}))
        append(path / "baselines.jsonl", TrialRecord(trial=100 + n, status="complete", rung=3, arch=None, arch_id=f"b{n}", label=attack,
                                                     objectives={"accuracy": 0.5 + 0.4 * n / len(attacks), "latency_ms": 2.0 + n % 7}))
    env = json.loads((path / "env.json").read_text())
    env["data"]["name"], env["space"]["name"], env["host"]["cpu"], env["device"]["cpu"], env["torch"] = attacks[:5]
    env["drift"] = attacks[5:10]
    (path / "env.json").write_text(json.dumps(env))
    said = dict(zip(("data", "sampler", "device", "engine"), attacks, strict=False))
    (path / "experiment.yaml").write_text(json.dumps(said))


def opened(browser: str, path: Path, profile: Path) -> tuple[bool, int]:
    """Whether any attack ran, and how many requests were tried, after the page's scripts have had their time."""
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--enable-logging=stderr", f"--user-data-dir={profile}",
         "--window-size=1280,2400", "--virtual-time-budget=8000", "--dump-dom", path.resolve().as_uri()],
        capture_output=True, text=True, timeout=300, check=True)
    asked = sum("Content Security Policy" in line or "Failed to load" in line for line in done.stderr.splitlines())
    return re.search(r"<html[^>]*data-ran", done.stdout) is not None, asked


FORMULAS = (
    "=", "+", "-", "@", "\t=", "\r=", "\n=", " =", "\u200b=", "\ufeff=", "\uff1d", "\uff0b", "\uff0d", "\uff20", "'=", "\"=", ";=",
    ",=", "|=", "%0A=")


def cells(*, times: int, seed: int) -> list[Row]:
    """Formulas as labels and reasons; what a spreadsheet finds at the beginning of a cell."""
    from nasvit.report import render
    from tests.unit.report.make_run import write_run

    rng, live, cells_seen = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = write_run(Path(folder) / "run", trials=25, baselines=False)
        donor = next(r for r in read(path / "records.jsonl") if r.status == "complete")
        for n in range(times):
            text = f"{rng.choice(FORMULAS)}{rng.choice(('cmd|/C calc!A0', 'HYPERLINK(1)', '1+1', 'SUM(A1)', 'WEBSERVICE(1)'))}"
            append(path / "records.jsonl", TrialRecord(
                trial=2000 + n, status="complete", rung=donor.rung, arch=donor.arch, arch_id=donor.arch_id, label=text, reason=text,
                objectives={**donor.objectives, "accuracy": 0.99, "latency_ms": 0.01}))
        render(path)
        with (path / "front.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.reader(file):
                for cell in row:
                    cells_seen += 1
                    live += _formula(cell)
    return [("cells with a formula among them", cells_seen), ("  that a spreadsheet would run", live)]


def _formula(cell: str) -> bool:
    with suppress(ValueError):
        float(cell)
        return False  # a negative number
    return cell.lstrip(" \u200b\ufeff\t\r\n")[:1] in {*"=+-@\uff1d\uff0b\uff0d\uff20"}


SECRETS = ("RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "GITHUB_TOKEN", "PGPASSWORD", "HTTPS_PROXY", "WANDB_API_KEY")


def secrets() -> list[Row]:
    """A search that crashes in some trials and is rendered, in an environment full of tokens; every byte it wrote is looked through."""
    from nasvit.report import render

    tokens = {name: token_hex(16) for name in SECRETS}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        process = begin(out, resume=False, evaluate="crashes", engine="processes", budget=8, environment=tokens)
        code = process.wait()
        render(out)
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        found = [path.name for path in files for token in tokens.values() if token.encode() in path.read_bytes()]
    return [("tokens in the environment", len(tokens)), ("files and logs looked through", len(files)), ("  tokens found", len(found)),
            ("the search ended with code", code)]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["names", "page", "cells", "secrets"])
    parser.add_argument("--times", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rows = {"names": lambda: names(times=given.times, seed=given.seed), "page": lambda: page(times=given.times),
            "cells": lambda: cells(times=given.times, seed=given.seed), "secrets": secrets}[given.what]()
    for what, figure in rows:
        print(f"{what:<55} {figure}")


if __name__ == "__main__":
    main()
