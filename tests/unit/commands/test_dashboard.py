from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from nasvit import cli
from nasvit.commands.dashboard import free_port
from nasvit.errors import ConfigError
from nasvit.results.record import append
from tests.unit.search.fakes import record


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "a run"
    folder.mkdir()
    (folder / "experiment.yaml").write_text("space: x\nobjectives: [accuracy, latency_ms]\n")
    for made in (record(0), record(0, rung=2, accuracy=0.75), record(1, status="rejected", reason="over")):
        append(folder / "records.jsonl", replace(made, params={"s0.depth": made.trial + 1}))
    return folder


def test_the_dashboard_serves_the_trials_of_a_run_on_loopback(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna_dashboard")
    port = free_port(0)
    threading.Thread(target=cli.main, args=(["dashboard", str(run), "--port", str(port)],), daemon=True).start()
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as answer:
                study = json.loads(answer.read())["study_summaries"][0]
            break
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.1)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies/{study['study_id']}?after=0", timeout=5) as answer:
        detail = json.loads(answer.read())
    assert study["study_name"] == "a run" and [t["state"] for t in detail["trials"]] == ["Complete", "Pruned"]
    assert [float(v) for v in detail["trials"][0]["values"]] == [0.75, 1.0]
    with pytest.raises(ConfigError, match="--port"):
        free_port(port)
    with socket.socket() as other:  # nobody listens on the machine's other addresses
        other.settimeout(2)
        place = socket.gethostbyname(socket.gethostname())
        assert place.startswith("127.") or other.connect_ex((place, port)) != 0


@pytest.mark.parametrize("name", ["nothing", "a run/records.jsonl"])
def test_what_is_no_run_is_refused(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dashboard", str(run.parent / name)]) == 1
    assert "there is no run" in capsys.readouterr().err
