"""A realistic run directory without a search: real Archs, rungs, rejections, failures, intervals, baselines."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from nasvit.arch import Arch, Block, MixerSpec, Stage, Stem
from nasvit.results.record import TrialRecord, append

FINGERPRINT = "a1b2c3d4e5f6"


def sample(rng: random.Random, *, stages: int) -> Arch:
    """A random network on 16x16 grey images."""
    widths = sorted(rng.choice([16, 24, 32, 48, 64]) for _ in range(stages))
    made = []
    for s, dim in enumerate(widths):
        side = 8 // 2**s
        window = MixerSpec.of("window", window_size=min(4, side), shift=False, num_heads=4)
        fsla = MixerSpec.of("fsla", cluster_depth=1, overlap=0, num_heads=2)
        slide = MixerSpec.of("slide", kernel_size=rng.choice([3, 5, 7]), num_heads=2)
        choices = [(window,), (slide,), (window, fsla), (MixerSpec.of("catm"),),
                   (MixerSpec.of("integration"), MixerSpec.of("catm")), (MixerSpec.of("global", num_heads=4),)]
        blocks = tuple(Block(mixers=rng.choice(choices), mlp_dim=dim * rng.choice([1, 2, 4]), keep_ratio=rng.choice([1.0, 1.0, 0.7, 0.5]))
                       for _ in range(rng.choice([1, 2, 2, 3])))
        made.append(Stage(embed_dim=dim, blocks=blocks))
    return Arch(image_size=(16, 16), in_channels=1, num_classes=10, stem=Stem(kind="conv", stride=2), stages=tuple(made))


def objectives(arch: Arch, rng: random.Random, *, rung: int) -> dict[str, float]:
    """Plausible values: larger is slower and, with diminishing return, more accurate."""
    size = sum(len(s.blocks) * s.embed_dim * sum(b.keep_ratio for b in s.blocks) / len(s.blocks) for s in arch.stages)
    local = sum(m.name in ("catm", "slide", "integration") for s in arch.stages for b in s.blocks for m in b.mixers)
    accuracy = 0.985 - 0.5 * math.exp(-(size + 25 * local) / 90) - (3 - rung) * 0.05 - abs(rng.gauss(0, 0.03))
    latency = 0.25 + size / 60 + sum(len(b.mixers) for s in arch.stages for b in s.blocks) * 0.22 * rng.uniform(0.9, 1.15)
    return {"accuracy": max(accuracy, 0.1), "latency_ms": latency, "macs_g": size * 4e-5, "params_m": size * 1.1e-3,
            "peak_memory_mb": 20 + size / 10}


def latency(value: float, rng: random.Random) -> dict[str, Any]:
    """LatencyStats as a dict."""
    half = value * rng.uniform(0.01, 0.05)
    return {"median_ms": value, "p10_ms": value * 0.95, "p90_ms": value * 1.1, "ci_low_ms": value - half, "ci_high_ms": value + half,
            "runs": 40, "repeats": 5, "verdict": rng.choice(["stable"] * 9 + ["noisy"]), "reference_ms": 3.1, "batch_size": 1,
            "fingerprint": FINGERPRINT, "cpu_ms": value, "threads": 1}


def write_records(path: Path, *, trials: int, seed: int, drift: float = 0.0, limit: float = 4.0) -> None:
    """records.jsonl of `trials` trials; promotions follow later, as in an asynchronous search."""
    rng = random.Random(seed)
    waiting: list[TrialRecord] = []
    for number in range(trials):
        arch = sample(rng, stages=rng.choice([2, 3]))
        values = objectives(arch, rng, rung=1)
        values["accuracy"] = max(values["accuracy"] - drift * rng.random(), 0.1)
        base: dict[str, Any] = {"trial": number, "arch": arch.to_dict(), "arch_id": arch.id, "seed": seed, "fingerprint": FINGERPRINT,
                                "started": 1.7e9 + number, "versions": {"nasvit": "0.1.0"}}
        if values["latency_ms"] > limit:
            append(path, TrialRecord(**base, status="rejected", rung=0, objectives={k: v for k, v in values.items() if k != "accuracy"},
                                     latency=latency(values["latency_ms"], rng), seconds={"measure": 0.4, "total": 0.4},
                                     reason=f"latency {values['latency_ms']:.2f} ms is over the limit of {limit:g} ms"))
            continue
        if rng.random() < 0.03:
            append(path, TrialRecord(**base, status="failed", rung=1, reason="the loss became nan at step 212",
                                     seconds={"train": 1.0, "total": 1.5}))
            continue
        record = TrialRecord(**base, status="complete", rung=1, objectives=values, latency=latency(values["latency_ms"], rng),
                             seconds={"train": 1.4, "measure": 0.4, "total": 2.0})
        append(path, record)
        waiting.append(record)
        if len(waiting) >= 3:
            best = max(waiting, key=lambda r: r.objectives["accuracy"] - 0.03 * r.objectives["latency_ms"])
            for rung in (2, 3) if rng.random() < 0.4 else (2,):
                better = {**best.objectives, "accuracy": min(best.objectives["accuracy"] + 0.05 * (rung - 1) - 0.01, 0.983)}
                append(path, TrialRecord(trial=best.trial, status="complete", rung=rung, arch=best.arch, arch_id=best.arch_id,
                                         objectives=better, latency=best.latency, seed=seed, fingerprint=FINGERPRINT,
                                         seconds={"train": 4.0, "total": 4.1}))
            waiting.clear()


def write_run(path: Path, *, trials: int = 120, seed: int = 7, drift: float = 0.0, baselines: bool = True, finished: bool = True,
              names: tuple[str, ...] = ("accuracy", "latency_ms")) -> Path:
    """A whole run directory; returns its path."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "experiment.yaml").write_text(yaml.safe_dump({
        "space": "hybrid_tiny", "data": "digits", "device": "cpu", "budget": trials, "minutes": None, "seed": seed,
        "objectives": list(names), "limits": {"latency_ms": 4.0}, "sampler": "surrogate", "engine": "processes",
        "workers": 2, "rungs": [150, 450, 1350], "eta": 3}))
    (path / "env.json").write_text(json.dumps({
        "nasvit": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "optuna": "5.0.0", "timm": "1.0.31",
        "host": {"cpu": "AMD EPYC 9B14", "cores": 2, "memory_gb": 7.8, "system": "Linux 6.1"},
        "fingerprint": FINGERPRINT, "reference_ms": 3.1,
        "device": {"kind": "cpu", "cpu": "AMD EPYC 9B14", "threads": 1, "runtime": "eager"},
        "data": {"name": "digits", "kind": "digits", "fingerprint": "0f0f0f0f0f0f", "train": 1197, "val": 300, "classes": 10,
                 "image_size": [16, 16]},
        "space": {"name": "hybrid_tiny", "size": 7.1e12}}))
    if trials:
        write_records(path / "records.jsonl", trials=trials, seed=seed, drift=drift)
    if finished:
        (path / "summary.json").write_text(json.dumps({
            "budget": trials, "evaluated": trials, "rejected": 9, "failed": 2, "stopped_because": "budget",
            "wall_seconds": 611.0, "train_seconds": 980.0, "measure_seconds": 170.0, "overhead_share": 0.031,
            "workers": 2, "sampler": "surrogate",
            "engine": "processes", "rungs": [150, 450, 1350], "objectives": list(names), "limits": {"latency_ms": 4.0}, "sessions": 1}))
    if baselines:
        rng = random.Random(1)
        for number, (label, accuracy, ms) in enumerate([("timm:levit_128s", 0.93, 9.1), ("timm:mobilenetv3_small_100", 0.88, 5.2)]):
            append(path / "baselines.jsonl", TrialRecord(
                trial=number, status="complete", rung=3, arch=None, arch_id=f"baseline{number}", label=label,
                objectives={"accuracy": accuracy, "latency_ms": ms, "macs_g": 0.005, "params_m": 7.0}, latency=latency(ms, rng),
                fingerprint=FINGERPRINT, seconds={"total": 30.0}))
        write_run(path / "baselines" / "random", trials=trials, seed=seed + 1, drift=0.12, baselines=False, names=names)
    return path
