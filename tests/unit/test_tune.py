from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from nasvit.errors import ArchError, ConfigError
from nasvit.space import SearchSpace
from nasvit.tune import arch_of, bound_space, define_by_run, trainable

SPACE = "catm_only"


def test_what_is_asked_of_a_trial_gives_back_the_architecture() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    ask, space = define_by_run(SPACE, data="digits"), bound_space(SPACE, data="digits")
    assert space.image_size == (8, 8) or space.image_size[0] % 2 == 0
    found = set()
    for _ in range(5):
        trial = study.ask()
        ask(trial)
        arch = arch_of({**trial.params, "lr": 0.1}, space=SPACE, data="digits")
        assert space.contains(arch)
        found.add(arch.id)
    assert len(found) > 1


def test_a_config_without_a_choice_names_it() -> None:
    with pytest.raises(ConfigError, match="missing"):
        arch_of({}, space=SPACE, data="digits")


def test_the_trainable_reports_growing_steps_and_counted_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    space, told = bound_space(SPACE, data="digits"), []
    arch = space.sample(random.Random(0))
    trainable(SPACE, data="digits", steps=5, seed=0, reports=2, report=told.append)(dict(space.arch_parameters(arch)))
    assert [t["steps"] for t in told] == [2, 5] and all(0 <= t["accuracy"] <= 1 for t in told)
    assert {t["arch_id"] for t in told} == {arch.id} and told[0]["macs_g"] > 0 and told[0]["params_m"] > 0


def test_fewer_steps_than_reports_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least as many"):
        trainable(SPACE, data="digits", steps=3, seed=0)


def test_a_combination_that_cannot_be_built_is_asked_whole_and_fails_in_the_trainable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ArchError("no such network")

    monkeypatch.setattr(SearchSpace, "suggest", refuse)
    define_by_run(SPACE, data="digits")(object())
    monkeypatch.setattr(SearchSpace, "from_parameters", refuse)
    with pytest.raises(ArchError, match="no such network"):
        trainable(SPACE, data="digits", steps=4, seed=0, report=lambda figures: None)({})


TUNER = """
import sys
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from nasvit.tune import define_by_run, trainable

search = OptunaSearch(space=define_by_run("catm_only", data="digits"), metric=["accuracy", "macs_g"], mode=["max", "min"])
tuner = tune.Tuner(tune.with_resources(trainable("catm_only", data="digits", steps=4, seed=0, reports=2), {"cpu": 1}),
                   tune_config=tune.TuneConfig(search_alg=search, num_samples=3, max_concurrent_trials=1),
                   run_config=tune.RunConfig(storage_path=sys.argv[1], name="x", verbose=0))
results = tuner.fit()
for result in results:
    print("RESULT", result.error, result.metrics["steps"], result.metrics["accuracy"], result.metrics["arch_id"])
"""


@pytest.mark.slow
def test_a_real_tuner_runs_trials_of_a_space(tmp_path: Path) -> None:
    from nasvit.engines.ray_access import require_own_token

    require_own_token()
    script = tmp_path / "tuner.py"
    script.write_text("import ray\nray.init(address='local', num_cpus=1, include_dashboard=False, _node_ip_address='127.0.0.1', "
                      "object_store_memory=100 * 2**20, log_to_driver=False)\n" + TUNER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "results")], capture_output=True, text=True, timeout=240,
                          check=False, env=environment)
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert len(rows) == 3 and all(error == "None" and steps == "4" for _, error, steps, *_ in rows), done.stdout + done.stderr
    assert len({row[-1] for row in rows}) > 1
