"""The driver: keeps the workers busy, judges each result, tells the sampler once, appends every record.

Only the driver writes records. It takes the space, the engine and the function that evaluates as arguments.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from nasvit.arch import Arch
from nasvit.engines import OverLimitError
from nasvit.errors import StorageError
from nasvit.experiment import Experiment
from nasvit.results.record import TrialRecord, append, read
from nasvit.search import plateau
from nasvit.search.evaluate import Job, Settings, derive_seed, failure
from nasvit.search.gone import FAULTY, blameless, gone_of, lost, unsettled, without, without_machine
from nasvit.search.gone import told as gone_told
from nasvit.search.in_turn import Submits
from nasvit.search.progress import Progress, Tally, snapshot
from nasvit.search.rungs import promotable, seconds_to_finish, unfinished
from nasvit.search.screen import Screen
from nasvit.search.study import Proposal, Proposer, Space
from nasvit.search.zero_cost import Scores

FIRST_FAILURES = 5
"""So many failures before anything succeeded, and the search stops with their reason."""
PATIENCE = 20
"""Rejected or failed trials allowed for each one of the budget."""
ATTEMPTS = 2
"""How often a job is tried when its worker dies, or when its latency did not become stable."""
POSTPONED = 3
"""So many networks at most wait for the machine to become calm."""
REPORTED = 500
"""So many records are reported each on its own, later ones once in REPORT_SECONDS, because a report looks at all records."""
REPORT_SECONDS = 1.0
REPORT_SHARE = 20
"""A report's time is at most one part in so many."""
FINISHING = 1 / 3
"""Of a search's minutes, at most so many are kept for bringing the front to the top rung."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """A job in the hands of a worker; proposal is None in the finishing pass, where nothing is told any more. spent: seconds of the
    attempts before this one, of those that gave a record."""

    job: Job
    proposal: Proposal | None
    attempt: int = 1
    spent: Mapping[str, float] = field(default_factory=dict)


class Loop:
    """One search from its records to its budget. `run()` returns why it stopped; `records` then holds all of them."""

    def __init__(self, experiment: Experiment, *, settings: Settings, space: Space, engine: Submits, path: Path,
                 evaluate: Callable[[Job], TrialRecord], records: Sequence[TrialRecord] = (),
                 on_record: Callable[[TrialRecord], TrialRecord] = lambda record: record, progress: Progress | None = None,
                 network: Callable[[TrialRecord], Any] = TrialRecord.network, scores: Scores | None = None,
                 screen: Screen | None = None, due: Callable[[int], Sequence[Mapping[str, Any]]] = lambda left: (),
                 settled: Callable[[TrialRecord], object] = lambda record: None,
                 told: Callable[[str], object] = lambda text: None) -> None:
        self.asked, self.engine, self.path, self.told = experiment, engine, path, told
        self.evaluate, self.progress, self.on_record, self.network = evaluate, progress, on_record, network
        self.settled = settled  # hears of every trial that has stopped rising
        self.records = list(records)
        self.inherited = len(self.records)  # of earlier sessions
        self.tally = Tally(self.records)
        self.before = self.tally.counts
        self.screen = Screen(limits=experiment.limits) if screen is None else screen
        self.gone: dict[str, TrialRecord] = {}  # latencies whose devices have left
        self.make_proposer = partial(Proposer, space, sampler=experiment.sampler, seed=experiment.seed, scores=scores,
                                     guesses=self.screen, due=due)
        self._do_without(gone_of(self.records, experiment), settings=settings)
        self.proposer = self._proposer()
        for known in self.records:
            self.screen.observe(known)
        self.flights: dict[Future[TrialRecord], Flight] = {}
        self.rising = 0  # new trials among them
        self.landed: queue.SimpleQueue[Future[TrialRecord]] = queue.SimpleQueue()
        self.report_at = 0.0
        self.queue: deque[Flight] = deque()  # promotions: they go before new trials
        self.postponed: deque[tuple[Flight, TrialRecord]] = deque()  # the latency was not stable; with what is on record if it never is
        self.calm = False  # another network could be measured since
        # one job more than there are workers, so that none waits while the sampler thinks; alone, a worker is the driver itself
        self.ahead = 1 if engine.workers > 1 else 0
        self.next_trial = max((r.trial for r in self.records), default=-1) + 1
        self.started = time.monotonic()
        self.stopped: str | None = None  # no new trials
        self.halted = False  # no promotions either
        self.lost: str | None = None  # why no device is asked any more
        self.outdated = False  # the study has objectives that are measured no more: a new one is made of the records, as a resume does
        self.finishing = (0.0, 0.0)  # seconds that the front's way to the top rung would take, and when that was looked at
        self.tail = (0.0, 0.0)  # seconds that all which would still rise would take, and when that was reckoned
        self.looked = 0  # how many were evaluated when the end was last thought of

    def _do_without(self, gone: dict[str, TrialRecord], *, settings: Settings) -> None:
        """Go on with the objectives and limits that the devices left can measure."""
        for name in gone.keys() - self.gone.keys():
            self.screen.drop(name)
            self.told(gone_told(name, gone[name], self.asked))
        self.gone, self.experiment = gone, without(self.asked, gone)
        self.settings = replace(settings, gone=tuple(gone), limits={k: v for k, v in settings.limits.items() if k not in gone})

    def _proposer(self) -> Proposer:
        return self.make_proposer(objectives=self.experiment.objectives, limits=self.experiment.limits, records=self.records)

    @property
    def elapsed_s(self) -> float:
        """Seconds of this session."""
        return time.monotonic() - self.started

    def run(self) -> str:
        """Search until the budget, the minutes or another end; then bring the front to the top rung. Ctrl-C keeps what is done."""
        try:
            self._drain(new_trials=True)
            while not self.halted and self._enqueue_unfinished():
                self._drain(new_trials=False)
        except KeyboardInterrupt:
            self.stopped, self.halted = "interrupted", True
            self._count_again()
            for future in [f for f in self.flights if f.done() and not f.cancelled()]:
                if future.exception() is None:  # a worker that the same Ctrl-C reached has no result
                    self._land(future)
        self._give_up_postponed()
        self._settle_promoted()
        self._report(None, ended=True)
        return self.stopped or "budget"

    def _settle_promoted(self) -> None:
        """What was promoted and will not rise in this session any more has stopped where it is."""
        for flight in (*self.queue, *self.flights.values()):
            if flight.proposal is not None and flight.job.earlier is not None:
                self.settled(flight.job.earlier)

    def _give_up_postponed(self) -> None:
        """What could not be measured is on record as failed."""
        while self.postponed:
            self._take(*self.postponed.popleft())

    def _count_again(self) -> None:
        """An interrupt can fall between a record on disk and its counting; what is on disk counts."""
        self.records.extend(read(self.path)[len(self.records):])
        self.tally = Tally(self.records)

    def _drain(self, *, new_trials: bool) -> None:
        """Fly everything that is due and land it, until nothing is left to fly."""
        self._fill(new_trials=new_trials)
        while self.flights:
            try:
                self._land(self.landed.get(timeout=1.0))
            except queue.Empty:
                self._report(None)  # the clock goes on
            self._fill(new_trials=new_trials)

    def _fill(self, *, new_trials: bool) -> None:
        self._check_ends()
        while len(self.flights) < self.engine.workers + self.ahead and not self.halted:
            if self.queue:
                self._fly(self.queue.popleft())
                continue
            if self.outdated:
                if self.flights:  # they are told to the study that proposed them
                    return
                self._give_up_postponed()
                self.proposer, self.outdated = self._proposer(), False
            left = self.experiment.budget - self.tally.counts.evaluated - self.rising - len(self.postponed)
            if self.stopped or not new_trials:
                return
            if self.postponed and (self.calm or left <= 0 or len(self.postponed) >= POSTPONED):
                self._fly_postponed()
                continue
            if left <= 0:
                return
            proposal = self.proposer.propose(left=left)
            if proposal is None:
                if self.postponed:
                    self._fly_postponed()
                    continue
                self.stopped = "space exhausted"
                return
            job = Job(settings=self.settings, trial=self.next_trial, arch=proposal.arch, params=proposal.params)
            self.next_trial += 1
            flight = Flight(job=job, proposal=proposal)
            if not self._screened(flight):
                self._fly(flight)
            self._check_ends()  # the inline engine has finished it by now

    def _check_ends(self) -> None:
        done, budget, failed = self.tally.counts, self.experiment.budget, self.records[-1:]
        if self.experiment.minutes is not None and self.elapsed_s >= 60 * self.experiment.minutes:
            self.stopped, self.halted = "minutes", True
        elif self.stopped is None and self._time_to_finish():
            self.stopped = "minutes"
        elif done.failed - self.before.failed >= FIRST_FAILURES and done.evaluated == done.rejected == 0 and (
                FAULTY not in failed[0].details):  # a device's faults have an end of their own
            self.stopped, self.halted = f"the first {done.failed} trials failed, the last because: {failed[0].reason}", True
        elif self._without_machine():
            self.stopped, self.halted = f"the last {FIRST_FAILURES} trials failed for want of a machine: {failed[0].reason}", True
        elif self.lost is not None:  # what is measured already still rises
            self.stopped = f"the device is gone: {self.lost}"
        elif done.rejected - self.before.rejected > PATIENCE * budget:
            self.stopped = f"the limits leave too little: {done.rejected} trials rejected, {done.evaluated} evaluated"
        elif done.failed - self.before.failed > PATIENCE * budget:
            self.stopped = f"{done.failed} trials failed, {done.evaluated} evaluated"
        elif self.stopped is None and self.experiment.stop == "plateau":
            self.stopped = self._plateau(done.evaluated)

    def _without_machine(self) -> bool:
        """Whether the last trials of this session all failed for reasons that are not theirs: going on would only use up networks."""
        last = self.records[max(self.inherited, len(self.records) - FIRST_FAILURES):]
        return len(last) == FIRST_FAILURES and without_machine(last)

    def _plateau(self, evaluated: int) -> str | None:
        """Why going on is not worth it, where it is not: by what the sampler expects, or by what the last trials added."""
        budget = self.experiment.budget
        if evaluated >= budget or not plateau.due(evaluated, budget=budget, looked=self.looked):
            return None
        self.looked, trials = evaluated, plateau.stretch(budget)
        expected = self.proposer.expected_gain(proposals=trials)
        gain = plateau.observed_gain(self.records, self.experiment.objectives, last=trials) if expected is None else expected
        if gain is None or gain >= plateau.LEAST_GAIN:
            return None
        return plateau.reason(gain, expected=expected is not None, trials=trials)

    def _screened(self, flight: Flight) -> bool:
        """Whether the network is turned away for its predicted latency; it then has its record, and the sampler knows."""
        job, begun = flight.job, time.perf_counter()
        judged = self.screen.judge(job.arch) if isinstance(job.arch, Arch) else None
        if judged is None:
            return False
        reason, predicted = judged
        self._take(flight, TrialRecord(
            trial=job.trial, status="rejected", rung=0, arch=job.arch.to_dict(), arch_id=job.arch.id, params=job.params, reason=reason,
            seed=derive_seed(self.settings.seed, job.arch.id), versions=self.settings.versions, started=time.time(),
            seconds={"train": 0.0, "measure": 0.0, "wait": 0.0, "total": time.perf_counter() - begun}, details={"predicted": predicted}))
        return True

    def _fly(self, flight: Flight) -> None:
        future = self.engine.submit(self.evaluate, flight.job)
        self.flights[future] = flight
        self.rising += flight.job.rung == 1
        future.add_done_callback(self.landed.put)

    def _fly_postponed(self) -> None:
        flight, record = self.postponed.popleft()
        self.calm = False
        self._fly(replace(flight, attempt=flight.attempt + 1, spent=record.seconds))

    def _land(self, future: Future[TrialRecord]) -> None:
        if future not in self.flights:  # landed by an interrupt
            return
        flight = self.flights.pop(future)
        self.rising -= flight.job.rung == 1
        try:
            record = future.result()
        except CancelledError:
            return
        except StorageError:  # no trial is to blame, and none could be written down
            raise
        except Exception as error:  # the worker died, not the network: try once more, then write it down
            if flight.attempt < ATTEMPTS and not isinstance(error, OverLimitError):
                self._fly(replace(flight, attempt=flight.attempt + 1))
                return
            job = flight.job
            record = replace(TrialRecord(trial=job.trial, status="failed", rung=job.rung, arch=job.arch.to_dict(), arch_id=job.arch.id,
                                         params=job.params, versions=job.settings.versions, started=time.time()), **failure(error))
        if unsettled(record) and flight.attempt < ATTEMPTS:  # the machine is to blame, and may be calmer when another was measured
            self.postponed.append((flight, record))
            self.calm = False
            return
        record = replace(record, seconds={name: value + flight.spent.get(name, 0.0) for name, value in record.seconds.items()})
        self.calm |= flight.job.rung == 1 and any(name.startswith("latency_ms") for name in record.objectives)
        self._take(flight, record)

    def _take(self, flight: Flight, record: TrialRecord) -> None:
        """Write the record, learn from it, judge it."""
        record = self.on_record(record)
        append(self.path, record)
        self.records.append(record)
        self.tally.add(record)
        self.screen.observe(record)
        if lost(record) is not None:
            self._lose(record)
        if flight.job.earlier is not None and record.checkpoint and flight.job.earlier.checkpoint:
            # only now: until the higher rung is on record, a resumed search goes on from the lower one's weights
            (Path(self.settings.run) / flight.job.earlier.checkpoint).unlink(missing_ok=True)
        final = self._judge(flight, record)
        if final is not None:
            self.settled(final)
        self._report(record)

    def _lose(self, record: TrialRecord) -> None:
        """A device is gone: where the search can do without it, go on so; else there is nothing left to measure on."""
        gone = gone_of(self.records, self.asked)
        if set(gone) != set(self.gone):
            self._do_without(gone, settings=self.settings)
            self.outdated = True
        elif lost(record) not in self.gone:  # a late word from one that is gone already changes nothing
            self.lost = record.reason

    def _judge(self, flight: Flight, record: TrialRecord) -> TrialRecord | None:
        """Promote the trial or, when it has stopped rising, tell the sampler the values of its highest rung; returns that record."""
        if flight.proposal is None:
            return record if record.status == "complete" else None
        if record.status == "complete" and record.rung < len(self.settings.rungs) and promotable(
                record.trial, self.tally.at_rung(record.rung), self.experiment.objectives, eta=self.experiment.eta):
            self.queue.append(Flight(job=self._next_rung(record), proposal=flight.proposal))
            self.proposer.rises(flight.proposal, record)
            return None
        earlier = flight.job.earlier
        final = earlier if record.status != "complete" and earlier is not None else record
        self.proposer.tell(flight.proposal, final)
        return final

    def _time_to_finish(self) -> bool:
        """Whether the minutes that are left are those in which the front, as it stands, comes to the top rung."""
        if self.experiment.minutes is None or self.elapsed_s < (1 - FINISHING) * 60 * self.experiment.minutes:
            return False
        seconds, looked_at = self.finishing
        if self.elapsed_s >= looked_at + REPORT_SECONDS:
            seconds = self._seconds_to_finish(front_alone=True)
            self.finishing = seconds, self.elapsed_s
        return self.elapsed_s + seconds >= 60 * self.experiment.minutes

    def _seconds_to_finish(self, *, front_alone: bool) -> float:
        return seconds_to_finish(self.records, self.experiment.objectives, rungs=self.settings.rungs, eta=self.experiment.eta,
                                 workers=self.engine.workers, front_alone=front_alone)

    def _next_rung(self, record: TrialRecord) -> Job:
        return Job(settings=self.settings, trial=record.trial, arch=self.network(record), rung=record.rung + 1, params=record.params,
                   earlier=record)

    def _enqueue_unfinished(self) -> bool:
        """Queue what the end of the search promotes. What fails is not tried again, so this comes to an end; but what an earlier session's
        machine failed is."""
        known = [r for i, r in enumerate(self.records) if i >= self.inherited or not blameless(r)]
        low = unfinished(known, self.experiment.objectives, top=len(self.settings.rungs), eta=self.experiment.eta)
        self.queue.extend(Flight(job=self._next_rung(record), proposal=None) for record in low)
        return bool(low)

    def _report(self, last: TrialRecord | None, *, ended: bool = False) -> None:
        now = time.monotonic()
        if self.progress is None or (len(self.records) > REPORTED and not ended and now < self.report_at):
            return
        if last is not None or not self.tail[1]:
            self.tail = self._seconds_to_finish(front_alone=False), now
        self.progress(snapshot(self.records, budget=self.experiment.budget, rungs=len(self.settings.rungs), last=last,
                               names=self.experiment.objectives, running=len(self.flights), elapsed_s=self.elapsed_s,
                               before=self.before.evaluated, minutes=self.experiment.minutes,
                               finish_s=max(0.0, self.tail[0] - (now - self.tail[1])),
                               stopped_because=(self.stopped or "budget") if ended else None))
        self.report_at = now + max(REPORT_SECONDS, REPORT_SHARE * (time.monotonic() - now))
