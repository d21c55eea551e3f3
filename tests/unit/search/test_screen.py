from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nasvit.arch import Arch
from nasvit.errors import ConfigError
from nasvit.experiment import Experiment
from nasvit.latency import LatencyModel
from nasvit.results.record import TrialRecord, read
from nasvit.search.evaluate import Job
from nasvit.search.objectives import known_of
from nasvit.search.screen import ENOUGH, Screen, make_screen
from nasvit.search.study import Proposer
from tests.unit.search.fakes import SmallSpace, arch, fake_evaluate, make_loop, record, settings


def stats(ms: float) -> dict[str, float]:
    return {"median_ms": ms, "ci_low_ms": 0.97 * ms, "ci_high_ms": 1.03 * ms}


def cost(network: Arch) -> float:
    stage = network.stages[0]
    return 0.1 + stage.embed_dim * len(stage.blocks) / 64 + stage.blocks[0].mlp_dim / 640


def measured(job: Job) -> TrialRecord:
    """`fake_evaluate`, with the measurement that a worker sends back."""
    record = fake_evaluate(job)
    return replace(record, latency=stats(cost(job.arch)))


def every() -> list[Arch]:
    return [arch(width=8 * w, depth=d, mlp=16 * m) for w in range(1, 9) for d in range(1, 5) for m in range(1, 5)]


def test_only_what_is_over_the_limit_with_its_whole_interval_is_turned_away() -> None:
    screen = Screen(limits={"latency_ms": 1.5, "params_m": 1})
    for network in every()[::3]:
        screen.models["latency_ms"].observe(network, cost(network), error=0.02)
    for network in every():
        predicted, judged = screen.models["latency_ms"].predict(network), screen.judge(network)
        assert (judged is not None) == (predicted.low_ms > 1.5)
        if judged is not None:
            assert "predicted" in judged[0] and judged[1]["latency_ms"]["low_ms"] > 1.5
    assert 10 < sum(screen.judge(network) is not None for network in every()) < 120
    network = every()[-1]
    predicted = screen.models["latency_ms"].predict(network)
    for limit, turned in (((predicted.low_ms + predicted.median_ms) / 2, False), (0.999 * predicted.low_ms, True)):
        assert (Screen(limits={"latency_ms": limit}, models=screen.models).judge(network) is not None) == turned


def test_nothing_is_turned_away_before_enough_is_measured_or_without_a_limit() -> None:
    screen, free = Screen(limits={"latency_ms": 1e-6}), Screen(limits={"macs_g": 1e-9})
    for number, network in enumerate(every()[: ENOUGH + 1]):
        assert (screen.judge(network) is not None) == (number >= ENOUGH) and free.judge(network) is None
        screen.models["latency_ms"].observe(network, cost(network))


def test_a_search_learns_from_its_measurements_and_then_spends_no_worker_on_what_is_too_slow(tmp_path: Path) -> None:
    asked: list[str] = []

    def evaluate(job: Job) -> TrialRecord:
        asked.append(job.arch.id)
        return measured(job)

    loop = make_loop(tmp_path, evaluate=evaluate, budget=40, limits={"latency_ms": 1.5}, rungs=(60,))
    loop.run()
    records = read(tmp_path / "records.jsonl")
    turned = [r for r in records if "predicted" in r.details]
    assert turned and all(r.status == "rejected" and r.rung == 0 and r.arch_id not in asked and not r.objectives for r in turned)
    assert all(cost(r.network()) > 1.5 for r in turned)
    assert all("latency_ms" in r.objectives for r in records if r.status == "complete")
    assert sum(r.status == "complete" for r in records) == 40
    assert all(r.seconds["total"] < 0.5 for r in turned)


def test_a_resumed_search_knows_what_was_measured(tmp_path: Path) -> None:
    make_loop(tmp_path, evaluate=measured, budget=30, limits={"latency_ms": 1.5}, rungs=(60,)).run()
    again = make_loop(tmp_path, evaluate=measured, budget=31, limits={"latency_ms": 1.5}, rungs=(60,),
                      records=read(tmp_path / "records.jsonl"))
    assert len(again.screen.models["latency_ms"].observations) >= 30


def test_the_sampler_is_told_that_a_predicted_network_is_over_the_limit() -> None:
    record = TrialRecord(trial=0, status="rejected", rung=0, arch=arch().to_dict(), arch_id=arch().id,
                         details={"predicted": {"latency_ms": {"median_ms": 4.0, "low_ms": 3.0, "high_ms": 5.0}}})
    assert known_of(record) == {"latency_ms": 3.0}
    proposer = Proposer(SmallSpace(), sampler="random", seed=0, objectives=("accuracy", "latency_ms"), limits={"latency_ms": 2.0})
    proposal = proposer.propose()
    assert proposal is not None
    proposer.tell(proposal, replace(record, arch=proposal.arch.to_dict(), arch_id=proposal.arch.id))
    trial = proposer.study.trials[0]
    assert trial.constraints["limits"] == pytest.approx(0.5)


def test_latencies_of_further_devices_are_learned_apart() -> None:
    screen = Screen(limits={"latency_ms": 9, "latency_ms@b": 1.5})
    for number, network in enumerate(every()[::3]):
        screen.observe(TrialRecord(trial=number, status="complete", rung=1, arch=network.to_dict(), arch_id=network.id,
                                   latency=stats(1.0), details={"latencies": {"b": stats(cost(network))}}))
    judged = screen.judge(every()[-1])
    assert judged is not None and judged[0].startswith("latency_ms@b is predicted")


def test_a_profile_of_another_device_is_refused_and_one_of_this_is_used_on_the_runs_scale(tmp_path: Path) -> None:
    model = LatencyModel(about={"fingerprint": "here", "reference_ms": 2.0})
    for network in every()[::3]:
        model.observe(network, cost(network))
    model.save(tmp_path / "p.json")
    experiment = Experiment(space="x", profile=str(tmp_path / "p.json"), limits={"latency_ms": 3.0})
    made = replace(settings(tmp_path, experiment), fingerprint="here", reference_ms=4.0)
    screen = make_screen(experiment, settings=made)
    assert screen.models["latency_ms"].predict(every()[-1]).median_ms == pytest.approx(2 * cost(every()[-1]), rel=0.1)
    assert screen.judge(every()[-1]) is not None
    with pytest.raises(ConfigError, match="profile of device here and this one is there"):
        make_screen(experiment, settings=replace(made, fingerprint="there"))
    with pytest.raises(ConfigError, match=r"profile at 16x16 px and the search is at 64x64 px.*: profile the device with --image-size 64"):
        make_screen(experiment, settings=replace(made, image_size=(64, 64)))


def test_a_model_that_knows_enough_learns_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nasvit.search.screen.LEARNED", 3)
    made = Screen(limits={"latency_ms": 8.0})
    for number in range(6):
        made.observe(replace(record(number), latency=stats(1.0 + number)))
    assert [o.ms for o in made.models["latency_ms"].observations] == [1.0, 2.0, 3.0]


def test_a_sampler_is_told_more_only_when_much_more_is_measured_and_a_resumed_search_as_it_was() -> None:
    networks = every()[::2]
    taught = [TrialRecord(trial=number, status="complete", rung=1, arch=network.to_dict(), arch_id=network.id, latency=stats(cost(network)))
              for number, network in enumerate(networks)]
    screen, lengths, told = Screen(limits={}, guessed=["latency_ms"]), list[int](), list[dict[str, float]]()
    for one in taught[:20]:
        screen.observe(one)
        lengths.append(screen.learned())
        told.append(screen.medians(networks[-1]))
    assert lengths == [0] * 7 + [8] * 4 + [12] * 5 + [17] * 4
    assert told[6] == {} and told[7] == told[10] != told[11] and set(told[7]) == {"latency_ms"}
    again = Screen(limits={}, guessed=["latency_ms"], records=taught[:20])
    assert again.medians(networks[-1]) == {} and again.learned() == 17
    assert [again.medians(network) for network in networks] == [screen.medians(network) for network in networks]


def test_only_a_sampler_that_relies_on_it_has_latencies_guessed(tmp_path: Path) -> None:
    for sampler, names in (("surrogate", {"latency_ms"}), ("tpe", set())):
        experiment = Experiment(space="x", sampler=sampler, objectives=("accuracy", "latency_ms", "macs_g"))
        assert set(make_screen(experiment, settings=settings(tmp_path, experiment)).models) == names
