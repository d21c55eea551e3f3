from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import yaml

from nasvit.errors import RunError
from nasvit.report import load, render
from nasvit.report.figures import number, shown
from nasvit.report.page import _wilson, notes
from nasvit.report.render import html, markdown
from nasvit.results.record import TrialRecord, append, latest, read
from tests.unit.report.make_run import write_run

EVIL = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"


class _Page(HTMLParser):
    """Elements and attributes as a browser sees them; the content of scripts apart."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def _tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Page()
    parser.feed(page)
    return parser.tags


def hostile(path: Path) -> Path:
    """A run whose every free text is an attack."""
    write_run(path, trials=25)
    record = next(r for r in read(path / "records.jsonl") if r.status == "complete")
    append(path / "records.jsonl", replace(record, trial=900, status="failed", reason=EVIL))
    append(path / "baselines.jsonl", TrialRecord(trial=9, status="complete", rung=3, arch=None, arch_id="evil", label=EVIL,
                                                 objectives={"accuracy": 0.9, "latency_ms": 2.0}))
    env = json.loads((path / "env.json").read_text())
    env["data"]["name"] = env["space"]["name"] = env["host"]["cpu"] = env["device"]["cpu"] = EVIL
    (path / "env.json").write_text(json.dumps(env))
    (path / "experiment.yaml").write_text(yaml.safe_dump({"data": EVIL, "sampler": EVIL, "device": EVIL}))
    return path


def test_all_files_are_written_and_nothing_half_done_is_left(run_dir: Path) -> None:
    before = {p.name for p in run_dir.iterdir()}
    files = render(run_dir)
    assert [p.name for p in files] == ["front.csv", "trials.parquet", "front.png", "report.md", "report.html"]
    assert {p.name for p in run_dir.iterdir()} - before <= {p.name for p in files}
    run = load(run_dir)
    pd.testing.assert_frame_equal(pd.read_parquet(run_dir / "trials.parquet"), run.trials, check_dtype=False)
    assert pd.read_csv(run_dir / "front.csv")["trial"].tolist() == run.front["trial"].tolist()


def test_a_failing_writer_leaves_the_old_file(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render(run_dir)
    old = (run_dir / "report.html").read_bytes()

    def broken(run: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(importlib.import_module("nasvit.report.render"), "html", broken)
    with pytest.raises(OSError, match="disk full"):
        render(run_dir)
    assert (run_dir / "report.html").read_bytes() == old and not list(run_dir.glob(".*.tmp"))


def test_the_page_is_small_has_one_library_and_asks_the_network_for_nothing(run_dir: Path) -> None:
    page = html(load(run_dir))
    assert len(page.encode()) < 2_000_000
    tags = _tags(page)
    assert [a.get("type") for t, a in tags if t == "script"] == ["application/json", None, None], "data, library, start"
    assert not [a for _, a in tags if a.get("src") or a.get("href")] and not [t for t, _ in tags if t in ("link", "iframe", "object")]
    assert "url(" not in re.search(r"<style>(.*?)</style>", page, re.S).group(1)  # type: ignore[union-attr]
    policy = next(a["content"] for t, a in tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'") and "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]


def test_hostile_text_makes_no_element_and_stays_readable(tmp_path: Path) -> None:
    path = hostile(tmp_path / "run")
    page = html(load(path))
    tags = _tags(page)
    assert len([t for t, _ in tags if t == "script"]) == 3 and not [t for t, _ in tags if t == "img"]
    assert not [a for _, a in tags if any(name.startswith("on") for name in a)]
    assert "&lt;/script&gt;&lt;script&gt;document.title" in page
    block = page.partition('id="specs">')[2].partition("</script>")[0]
    assert "pwned" in block and "<" not in block, "the label of a baseline is chart data too"
    assert "<script" not in markdown(load(path)) and "<img" not in markdown(load(path))


def test_a_spreadsheet_finds_no_formula(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", trials=1, baselines=False)
    donor = next(r for r in read(write_run(tmp_path / "other", trials=20, baselines=False) / "records.jsonl") if r.status == "complete")
    for trial, label in enumerate(("=1+1", "+1", "-1", "@A1", "\tx", " =1", "\uff1d1", "plain"), start=10):
        append(path / "records.jsonl", replace(donor, trial=trial, label=label))
    render(path)
    labels = pd.read_csv(path / "front.csv", keep_default_na=False)["label"].tolist()
    assert labels[-8:] == ["'=1+1", "'+1", "'-1", "'@A1", "'\tx", "' =1", "'\uff1d1", "plain"]


@pytest.mark.parametrize("trials", [0, 1])
def test_a_run_without_a_complete_trial_says_so(tmp_path: Path, trials: int) -> None:
    path = write_run(tmp_path / "run", trials=0, baselines=False, finished=False)
    if trials:
        append(path / "records.jsonl", TrialRecord(trial=0, status="rejected", rung=0, arch=None, arch_id="x", reason="too slow"))
    assert all(p.stat().st_size for p in render(path))
    page = (path / "report.html").read_text()
    assert "No complete trial yet" in page and "not finished" in page
    assert "No complete trial yet" in (path / "report.md").read_text()


def test_an_interrupted_run_is_marked_and_a_finished_one_is_not(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", trials=20, baselines=False)
    assert "not finished" not in html(load(path))
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**summary, "stopped_because": "interrupted"}))
    assert "not finished" in html(load(path))


def test_the_page_tells_what_the_run_was(run_dir: Path) -> None:
    run = load(run_dir)
    for text in (html(run), markdown(run)):
        for fact in ("a1b2c3d4e5f6", "3.1 %", "10 min 11 s", "AMD EPYC 9B14", "150 steps", "over the limit", "timm:levit_128s",
                     "the loss became nan", "300 validation images", "torch 2.13.0", *run.front["arch_id"]):
            assert fact in text, fact


def test_reasons_that_differ_in_numbers_only_are_one_line(run_dir: Path) -> None:
    assert markdown(load(run_dir)).count("is over the limit of 4 ms") == 1


def test_a_sign_that_no_xml_may_hold_does_not_end_the_process(tmp_path: Path) -> None:
    """vl-convert aborts on a zero byte in a chart's text; no exception, so this test could not have said so."""
    code = ("from nasvit.report.embed import svg_of; print(svg_of({'data': {'values': [{'a': 'x\\0y'}]}, 'mark': 'text', "
            "'encoding': {'text': {'field': 'a', 'type': 'nominal'}}}))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "x\ufffdy" in done.stdout, done.stderr[-500:]


def test_a_file_of_a_run_that_says_the_impossible_is_damaged_and_named(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", trials=5, baselines=False)
    for name, text, word in (("env.json", '{"data": {"train": []}}', "data.train must be a number"),
                             ("summary.json", '{"engine": "\\ud800"}', "summary.json"),
                             ("env.json", '{"reference_ms": NaN}', "reference_ms"),
                             ("experiment.yaml", "a: &a [1]\nb: [*a, *a]\n", "aliases")):
        kept = (path / name).read_text()
        (path / name).write_text(text)
        with pytest.raises(RunError, match=word):
            load(path)
        (path / name).write_text(kept)


def test_what_a_rejection_cost_stands_beside_a_whole_trial(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    last = latest(load(path).records).values()
    top = max(r.rung for r in last if r.status == "complete")
    base = {"status": "complete", "arch": None, "objectives": {"accuracy": 0.1, "latency_ms": 99.0}}
    append(path / "records.jsonl", TrialRecord(trial=900, arch_id="a", rung=1, seconds={"measure": 1.0, "train": 3.0}, **base))
    append(path / "records.jsonl", TrialRecord(trial=900, arch_id="a", rung=top + 1, seconds={"train": 96.0}, **base))
    for trial, seconds in ((901, 2.0), (902, 4.0)):
        append(path / "records.jsonl", TrialRecord(trial=trial, status="rejected", rung=0, arch=None, arch_id=str(trial), reason="too slow",
                                                   seconds={"measure": seconds, "wait": 50.0}))
    found = next(line for line in markdown(load(path)).splitlines() if "what a rejection cost" in line)
    others = [r.seconds["measure"] for r in last if r.status == "rejected"]
    each = (sum(others) + 6.0) / (len(others) + 2)
    assert f"{each:.3g} s on average of {len(others) + 2}, {each:.1f} % of a network trained to rung {top + 1} (1 min 40 s)" in found


def test_an_accuracy_of_one_is_not_known_exactly() -> None:
    from scipy.stats import binomtest

    for hits, count in ((72, 72), (0, 10), (83, 100), (1, 3000)):
        interval = binomtest(hits, count).proportion_ci(0.95, method="wilson")
        assert _wilson(hits / count, count) == pytest.approx((interval.low, interval.high), abs=1e-4)


@pytest.mark.parametrize(("value", "text"), [(1234.0, "1,234 ms"), (999.7, "1,000 ms"), (999.4, "999 ms"), (12.34, "12.3 ms"),
                                             (0.5, "0.500 ms")])
def test_a_figure_of_a_thousand_and_more_is_written_out(value: float, text: str) -> None:
    assert number(value, unit="ms") == text


def test_what_was_left_out_of_the_data_is_said(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    env = json.loads((path / "env.json").read_text())
    env["data"]["notes"] = ["skipped 3 unusable files: a.heic (UnidentifiedImageError)"]
    (path / "env.json").write_text(json.dumps(env))
    assert any("skipped 3 unusable files: a.heic" in line for line in notes(load(path)))


@pytest.mark.parametrize(("name", "value", "text"), [
    ("accuracy", 0.971, "97.1 %"), ("latency_ms", 1.2, "1.20 ms"), ("latency_ms@pi", 0.252, "0.252 ms"),
    ("peak_memory_mb", 12.0, "12.0 MB"), ("macs_g", 0.000145, "0.145 M"), ("macs_g", 1.26, "1.26 G"),
    ("params_m", 0.0016, "1.60 k"), ("params_m", 5.7, "5.70 M"), ("macs_g", float("nan"), "\u2013")])
def test_an_objective_has_one_unit_wherever_it_stands(name: str, value: float, text: str) -> None:
    """The tiles said 0.000145 G of what the table called 0.145 M; a second device's latency had no unit."""
    assert shown(name, value) == text
