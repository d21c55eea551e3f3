"""The cluster files that are shipped are what Ray's launcher accepts, and none starts Ray without a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "cluster"


@pytest.mark.parametrize("name", ["on_premise", "aws"])
def test_a_launcher_file_is_what_ray_up_accepts(name: str) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    given: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    prepared = util.prepare_config(given)
    util.validate_config(prepared)
    assert prepared["cluster_name"] == "nasvit" and prepared["max_workers"] >= 2


def test_machines_of_your_own_are_all_started() -> None:
    """The newer autoscaler takes the head, which has the workers' type here, for one of them: the last machine never started."""
    given: dict[str, Any] = yaml.safe_load((FOLDER / "on_premise.yaml").read_text())
    assert any("RAY_enable_autoscaler_v2=0" in c and "--head" in c for c in given["head_start_ray_commands"])


@pytest.mark.parametrize("name", ["on_premise", "aws"])
def test_a_launcher_file_starts_every_node_with_a_token(name: str) -> None:
    given: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    started = [c for key in ("head_start_ray_commands", "worker_start_ray_commands") for c in given[key] if "ray start" in c]
    assert len(started) == 2 and all("RAY_AUTH_MODE=token ray start" in c for c in started)
    assert any("PATH=" in c and "~/.bashrc" in c for c in given["setup_commands"])  # `ray down` ends nothing where no ray is on the PATH
    assert "~/.ray/auth_token" in given["file_mounts"] and "--dashboard-host=127.0.0.1" in started[0]


def test_the_kubernetes_manifest_asks_for_a_token_and_keeps_the_measuring_pod_apart() -> None:
    cluster, claim = yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text())
    spec = cluster["spec"]
    assert spec["authOptions"] == {"mode": "token"} and claim["kind"] == "PersistentVolumeClaim"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["template"]["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
