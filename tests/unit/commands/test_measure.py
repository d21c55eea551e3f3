"""`nasvit measure` on one network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nasvit import cli
from nasvit.arch import Arch
from nasvit.commands.measure import megabytes


def test_json_is_one_object_with_the_figure_its_interval_and_all_that_is_known(
        tiny_arch: Arch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NASVIT_LOCK", str(tmp_path / "lock"))
    (tmp_path / "arch.json").write_text(tiny_arch.to_json())
    assert cli.main(["measure", "--arch", str(tmp_path / "arch.json"), "--device", "cpu?threads=1", "--batch-size", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    low, high = told["interval_ms"]
    assert 0 < low <= told["latency_ms"] <= high and told["verdict"] in ("stable", "noisy", "drifting")
    assert told["peak_memory_mb"] > 0 == told["peak_memory_step_mb"] and told["cpu_ms"] > 0
    assert (told["threads"], told["batch_size"], told["input_shape"]) == (1, 3, [3, 1, 16, 16])
    assert told["device"]["fingerprint"] == told["fingerprint"] and told["device"]["form"] == "deployed"
    assert {"governor", "frequency_mhz", "temperature_c", "load_average"} <= set(told["state"])
    assert not set(told["state"]) & set(told["device"])


def test_a_batch_size_and_a_run_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["measure", "--run", "somewhere", "--batch-size", "2"]) == 2
    assert "--batch-size" in capsys.readouterr().err


def test_a_very_small_network_does_not_need_zero_megabytes(
        tiny_arch: Arch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert [megabytes(value, step=0.0) for value in (1234.56, 12.34, 0.0903, 0.002)] == ["1234.6 MB", "12.3 MB", "0.0903 MB", "0.002 MB"]
    assert [megabytes(value, step=0.1) for value in (12.34, 0.4178, 0.09, 0.0)] == ["12.3 MB", "0.4 MB", "below 0.1 MB", "below 0.1 MB"]
    monkeypatch.setenv("NASVIT_LOCK", str(tmp_path / "lock"))
    (tmp_path / "arch.json").write_text(tiny_arch.to_json())
    assert cli.main(["measure", "--arch", str(tmp_path / "arch.json"), "--device", "cpu?threads=1&noise=keep"]) == 0
    shown = capsys.readouterr().out
    assert "peak memory 0." in shown and "peak memory 0.0 MB" not in shown
