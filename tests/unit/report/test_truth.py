from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nasvit.commands import terminal
from nasvit.report import load
from nasvit.report.render import html, markdown
from nasvit.report.truth import truth_of, verdict
from nasvit.results.record import TrialRecord, append, latest, read
from tests.unit.report.make_run import write_run


def with_truth(path: Path, *, agrees: bool, steps: int = 240) -> Path:
    """A run with 12 longer trainings that rank as rung 1 does, or the other way round."""
    write_run(path, trials=60)
    records = [r for r in read(path / "records.jsonl") if r.status == "complete" and r.rung == 1]
    for n, first in enumerate(records[:12]):
        value = first.objectives["accuracy"] if agrees else 1 - first.objectives["accuracy"]
        append(path / "truth.jsonl", TrialRecord(
            trial=first.trial, status="complete", rung=4, arch=first.arch, arch_id=first.arch_id, objectives={"accuracy": value},
            seconds={"train": 2.0}, details={"truth_steps": steps, "scores": {"snip": -value, "naswot": float(n % 3), "params": 3.0}}))
    return path


def test_rungs_come_first_and_proxies_by_the_size_of_their_tau(tmp_path: Path) -> None:
    run = load(with_truth(tmp_path / "run", agrees=True))
    truth = truth_of(run)
    assert truth is not None and (truth.networks, truth.steps) == (12, 240) and not truth.poor
    names = [r.name for r in truth.rankings]
    assert names[:2] == ["rung 1", "rung 2"] and names.index("snip") < names.index("naswot") and "params" not in names
    first = truth.rankings[0].tau
    assert first is not None and first.value == 1 and first.n == 12
    snip = next(r for r in truth.rankings if r.name == "snip")
    assert snip.tau is not None and snip.tau.value == -1 and not snip.poor, "a proxy may point either way"
    assert [r.tau and r.tau.n for r in truth.rankings if r.rung] == [12, 4, None]
    assert verdict(run, truth) == ("Kendall's tau is 0.5 or more for rung 1; of the other rungs too few networks were trained longer to "
                                   "say.")


def test_no_rung_is_called_good_for_four_networks(tmp_path: Path) -> None:
    path = with_truth(tmp_path / "run", agrees=True)
    lines = (path / "truth.jsonl").read_text().splitlines(keepends=True)
    (path / "truth.jsonl").write_text("".join(lines[:4]))
    run = load(path)
    truth = truth_of(run)
    assert truth is not None and truth.rankings[0].tau is not None and truth.rankings[0].tau.n == 4
    assert "Too few" in verdict(run, truth)


def test_a_rung_under_a_half_is_said_in_red_on_the_page_and_in_the_terminal(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = (with_truth(tmp_path / name, agrees=name == "good") for name in ("good", "bad"))
    page = html(load(bad))
    assert '<p class="poor">Kendall' in page and "rung 1 -1.00" in page and "rung 1 -1.00" in markdown(load(bad))
    assert '<p class="poor">' not in html(load(good))
    styles = []
    monkeypatch.setattr(terminal.out_console, "print", lambda *text, style=None, **more: styles.append(style))
    for place, style in ((bad, "bold red"), (good, None)):
        styles.clear()
        terminal.render(place)
        assert styles[-1] == style


def test_only_the_longest_trainings_count_and_without_any_the_reason_is_told(tmp_path: Path) -> None:
    path = with_truth(tmp_path / "run", agrees=True)
    one = next(r for r in latest(read(path / "records.jsonl")).values() if r.status == "complete")
    append(path / "truth.jsonl", replace(one, rung=4, details={"truth_steps": 960}))
    truth = truth_of(load(path))
    assert truth is not None and (truth.networks, truth.steps) == (1, 960) and not truth.poor
    assert "Too few" in verdict(load(path), truth)
    (path / "truth.jsonl").unlink()
    run = load(path)
    assert truth_of(run) is None and verdict(run, None) == ""
    assert verdict(replace(run, summary={"truth": {"reason": "switched off (truth: 0)"}}), None) == (
        "No network was trained longer: switched off (truth: 0).")
