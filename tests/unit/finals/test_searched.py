from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from nasvit.data import load
from nasvit.errors import ConfigError, RunError
from nasvit.finals.searched import load_searched, run_data
from nasvit.report import load as load_run
from tests.unit.report.make_run import write_run


@pytest.mark.parametrize(("data", "says"), [("/gone/photos", "no such file"), ("digits", "is not the data that")])
def test_a_run_whose_data_moved_says_where_to_write_the_new_place(data: str, says: str, tmp_path: Path) -> None:
    env: dict[str, Any] = {"data": {"fingerprint": "another"}}
    with pytest.raises(ConfigError, match=rf"{says}.* write its full path behind `data:` in {tmp_path}/experiment.yaml"):
        run_data(tmp_path, {"data": data, "seed": 0}, env, image_size=(16, 16))
    env["data"]["fingerprint"] = load("digits", seed=0, image_size=(16, 16)).fingerprint
    assert run_data(tmp_path, {"data": "digits", "seed": 0}, env, image_size=(16, 16)).name == "digits"


def test_the_command_for_lost_weights_is_one_that_a_shell_takes(tmp_path: Path) -> None:
    path = write_run(tmp_path / "my run", trials=10, baselines=False)
    run = load_run(path)
    with pytest.raises(RunError, match="checkpoint of trial") as caught:
        load_searched(path, run.best(), run.experiment, run.env)
    assert shlex.split(str(caught.value).split("`")[1]) == ["nasvit", "train", str(path), "--pick", run.best().arch_id]
