"""`--storage`: a search whose trials a database is given a copy of."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from nasvit.search import Snapshot, run
from tests.integration.test_search import experiment, quick_evaluate


@pytest.mark.slow
def test_a_search_copies_its_trials_outlives_the_storage_and_writes_the_url_nowhere(tmp_path: Path) -> None:
    (tmp_path / "s3cret").mkdir()
    url, out, notes = f"sqlite:///{tmp_path / 's3cret' / 'watch.db'}", tmp_path / "run", set()
    given = {"engine": "inline", "truth": 0.0}
    summary = run(experiment(budget=6, **given), out=out, evaluate=quick_evaluate, storage=url)
    study = optuna.load_study(study_name="run", storage=url)
    complete = [t for t in study.trials if t.state.name == "COMPLETE"]
    assert summary["evaluated"] == 6 == len(complete) == len({t.user_attrs["trial"] for t in study.trials})
    assert study.metric_names == ["accuracy", "latency_ms"] and all(t.state.name in ("COMPLETE", "PRUNED") for t in study.trials)

    def lose(snapshot: Snapshot) -> None:
        notes.update(snapshot.notes)
        if snapshot.evaluated == 7:
            (tmp_path / "s3cret" / "watch.db").write_bytes(b"this is no database" * 1000)

    again = run(experiment(budget=12, **given), out=out, resume=True, evaluate=quick_evaluate, storage=url, progress=lose)
    assert again["evaluated"] == 12 and sum("the storage is lost" in note for note in notes) == 1
    assert not [p for p in out.rglob("*") if p.is_file() and b"s3cret" in p.read_bytes()]
