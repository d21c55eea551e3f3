from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from nasvit.errors import ConfigError
from nasvit.report import Run, load
from nasvit.report.comparison import chart, compare, rows, write
from nasvit.results.front import hypervolume, reference_point, to_minimised
from nasvit.results.record import latest
from tests.unit.report.make_run import write_run


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    place = tmp_path_factory.mktemp("pair")
    return (load(write_run(place / "good", trials=40, baselines=False)),
            load(write_run(place / "worse", trials=40, seed=9, drift=0.3, baselines=False)))


def test_hypervolumes_stand_on_one_reference_point_of_all_runs(pair: tuple[Run, Run]) -> None:
    names = ("accuracy", "latency_ms")
    points = [to_minimised([r.objectives for r in latest(run.records).values() if r.status == "complete"], names) for run in pair]
    reference = reference_point(np.concatenate(points))
    found = compare(pair)
    assert np.allclose(found.reference, reference)
    assert found.table["hypervolume"].tolist() == pytest.approx([hypervolume(p, reference) for p in points])
    assert found.table["ratio"].tolist() == pytest.approx([1, found.table["hypervolume"][1] / found.table["hypervolume"][0]])
    assert found.table["ratio"][1] < 1 and found.table["share_of_common_front"].between(0, 1).all()


def test_a_run_beside_itself_is_as_good(pair: tuple[Run, Run]) -> None:
    found = compare([pair[0], pair[0]])
    assert found.table["ratio"].tolist() == [1, 1] and found.table["share_of_common_front"].tolist() == [1, 1]
    assert len(set(found.names)) == 2


def test_the_picture_holds_every_front_and_no_run_is_hidden(pair: tuple[Run, Run]) -> None:
    spec = chart(compare(pair))
    assert {row["run"] for row in spec["datasets"]["fronts"]} == {"good", "worse"}
    assert len(spec["datasets"]["clouds"]) == sum((run.trials["status"] == "complete").sum() for run in pair)


def test_files_are_written_and_open_offline(pair: tuple[Run, Run], tmp_path: Path) -> None:
    files = write(compare(pair), tmp_path / "out")
    html = files[0].read_text()
    page = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert "<link" not in page and 'src="' not in page and "good against worse" in page and "default-src 'none'" in page
    assert files[1].read_bytes()[:4] == b"\x89PNG" and len(pd.read_csv(files[2])) == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["compare.csv", "compare.html", "compare.png"]


def test_names_from_a_run_are_escaped(pair: tuple[Run, Run], tmp_path: Path) -> None:
    hostile = load(write_run(tmp_path / "<img src=x onerror=alert(1)>", trials=10, baselines=False))
    page = write(compare([pair[0], hostile]), tmp_path / "out")[0].read_text()
    assert "<img" not in page.partition('<script type="application/json"')[0] and "<img" not in compare([pair[0], hostile])._repr_html_()


def test_runs_of_other_data_device_or_objectives_are_refused(pair: tuple[Run, Run], tmp_path: Path) -> None:
    def changed(name: str, **env: object) -> Run:
        path = write_run(tmp_path / name, trials=10, baselines=False)
        (path / "env.json").write_text(json.dumps({**json.loads((path / "env.json").read_text()), **env}))
        return load(path)

    with pytest.raises(ConfigError, match="different data"):
        compare([pair[0], changed("data", data={"fingerprint": "another"})])
    with pytest.raises(ConfigError, match="two devices never stand"):
        compare([pair[0], changed("device", fingerprint="another")])
    with pytest.raises(ConfigError, match="at least two runs, not 1"):
        compare(pair[:1])
    with pytest.raises(ConfigError, match="no complete trial yet"):
        compare([pair[0], load(write_run(tmp_path / "empty", trials=0, baselines=False))])
    other = write_run(tmp_path / "objectives", trials=10, baselines=False, names=("macs_g", "params_m"))
    with pytest.raises(ConfigError, match="fewer than two in common"):
        compare([pair[0], load(other)])
    three = [load(write_run(tmp_path / f"of {n}", trials=10, baselines=False, names=names)) for n, names in enumerate(
        (("accuracy", "latency_ms", "macs_g"), ("accuracy", "latency_ms"), ("latency_ms", "macs_g")))]
    with pytest.raises(ConfigError, match="fewer than two objectives in common"):
        compare(three)


def test_what_makes_runs_unequal_is_said(pair: tuple[Run, Run], tmp_path: Path) -> None:
    path = write_run(tmp_path / "other", trials=20, baselines=False)
    settings = yaml.safe_load((path / "experiment.yaml").read_text())
    (path / "experiment.yaml").write_text(yaml.safe_dump({**settings, "rungs": [10, 20]}))
    (path / "env.json").write_text(json.dumps({**json.loads((path / "env.json").read_text()), "reference_ms": 4.0}))
    notes = " ".join(compare([pair[0], load(path)]).notes)
    assert "calibrated apart" in notes and "trained differently" in notes and "different numbers of trials" in notes
    assert len(compare(pair).notes) == 1


def test_the_table_shows_as_text_and_in_a_notebook(pair: tuple[Run, Run]) -> None:
    found = compare(pair)
    assert [row["run"] for row in rows(found)] == ["good", "worse"] and rows(found)[0]["best validation accuracy"].endswith("%")
    shown = found._repr_html_()
    assert shown.count("<tr>") == 3 and "<svg" in shown
