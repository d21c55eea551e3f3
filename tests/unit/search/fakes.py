"""A space of three choices, an engine that runs in the caller, and an evaluation that trains nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nasvit.arch import Arch, Block, MixerSpec, Stage, Stem
from nasvit.experiment import Experiment
from nasvit.models.build import build
from nasvit.models.weight_file import write_weights
from nasvit.results.record import TrialRecord
from nasvit.search.evaluate import Job, Settings
from nasvit.search.loop import Loop
from nasvit.search.objectives import passed


def arch(*, width: int = 8, depth: int = 1, mlp: int = 16) -> Arch:
    block = Block(mixers=(MixerSpec.of("slide", kernel_size=3, num_heads=2),), mlp_dim=mlp)
    return Arch(image_size=(16, 16), in_channels=1, num_classes=10, stem=Stem(kind="conv", stride=2),
                stages=(Stage(embed_dim=width, blocks=(block,) * depth),))


def selecting(*, width: int = 8) -> Arch:
    """Its second block leaves half of the tokens out."""
    whole = arch(width=width, depth=2)
    stage = whole.stages[0]
    return replace(whole, stages=(replace(stage, blocks=(stage.blocks[0], replace(stage.blocks[1], keep_ratio=0.5))),))


def kept(run: Path, trial: int, network: Arch, *, accuracy: float, latency: float) -> TrialRecord:
    """A trial whose weights are on disk."""
    write_weights(run / f"checkpoints/{network.id}.safetensors", build(network, seed=1).state_dict())
    return TrialRecord(trial=trial, status="complete", rung=1, arch=network.to_dict(), arch_id=network.id, seed=1,
                       checkpoint=f"checkpoints/{network.id}.safetensors", objectives={"accuracy": accuracy, "latency_ms": latency})


@dataclass(frozen=True)
class SmallSpace:
    """widths x depths x mlp sizes architectures."""

    widths: int = 8
    depths: int = 4
    mlps: int = 4

    def suggest(self, trial: Any) -> Arch:
        width = trial.suggest_int("s0.embed_dim", 8, 8 * self.widths, step=8)
        depth = trial.suggest_int("s0.depth", 1, self.depths)
        mlp = trial.suggest_categorical("s0.mlp", [16 * (i + 1) for i in range(self.mlps)])
        return arch(width=width, depth=depth, mlp=mlp)

    def sample(self, rng: random.Random) -> Arch:
        return arch(width=8 * rng.randint(1, self.widths), depth=rng.randint(1, self.depths), mlp=16 * rng.randint(1, self.mlps))

    def from_parameters(self, params: Mapping[str, Any], *, rng: random.Random | None = None) -> Arch:
        drawn = self.arch_parameters(self.sample(rng or random.Random(0)))
        chosen = {**drawn, **params}
        return arch(width=chosen["s0.embed_dim"], depth=chosen["s0.depth"], mlp=chosen["s0.mlp"])

    def size(self) -> int:
        return self.widths * self.depths * self.mlps

    def arch_parameters(self, arch: Arch) -> dict[str, Any]:
        stage = arch.stages[0]
        return {"s0.embed_dim": stage.embed_dim, "s0.depth": len(stage.blocks), "s0.mlp": stage.blocks[0].mlp_dim}


class Inline:
    """Runs a job when it is submitted."""

    workers = 1

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def record(trial: int, *, rung: int = 1, accuracy: float = 0.5, latency: float = 1.0, status: Any = "complete", **more: Any) -> TrialRecord:
    network = arch(width=8 * (trial + 1))
    values = {"accuracy": accuracy, "latency_ms": latency} if status == "complete" else {}
    return TrialRecord(**{"trial": trial, "status": status, "rung": rung, "arch": network.to_dict(), "arch_id": network.id,
                          "objectives": values, **more})


def fake_evaluate(job: Job) -> TrialRecord:
    """Latency grows with width and depth, accuracy with their product and with the rung; limits hold."""
    stage = job.arch.stages[0]
    size = stage.embed_dim * len(stage.blocks)
    values = {"params_m": size / 1e3, "macs_g": size / 1e4, "latency_ms": 0.1 + size / 64 + stage.blocks[0].mlp_dim / 640}
    known = TrialRecord(trial=job.trial, status="complete", rung=job.rung, arch=job.arch.to_dict(), arch_id=job.arch.id, params=job.params,
                        objectives=values, seconds={"train": 0.01, "measure": 0.01, "total": 0.02})
    reason = passed(values, job.settings.limits)
    if reason is not None:
        return replace(known, status="rejected", rung=0, reason=reason)
    return replace(known, objectives={**values, "accuracy": 1 - 1 / (1 + size * job.rung)})


def settings(path: Path, experiment: Experiment) -> Settings:
    return Settings(run=str(path), data="digits", device="cpu", reference_ms=1.0, image_size=(16, 16), seed=experiment.seed,
                    rungs=experiment.rungs or (60, 180, 540), limits=dict(experiment.limits))


def make_loop(path: Path, *, space: Any = None, evaluate: Any = fake_evaluate, records: Any = (), engine: Any = None, progress: Any = None,
              due: Any = lambda left: (), told: Any = lambda text: None, **values: Any) -> Loop:
    experiment = Experiment(**{"space": "small", "sampler": "random", "engine": "inline", "budget": 12, **values})
    return Loop(experiment, settings=settings(path, experiment), space=space or SmallSpace(), engine=engine or Inline(),
                path=path / "records.jsonl", evaluate=evaluate, records=records, progress=progress, due=due, told=told)
