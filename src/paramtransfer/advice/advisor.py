"""From a question to advice: cheap scores, paired trainings, a verdict, all kept in a run of its own."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from statistics import fmean

import torch

from paramtransfer.advice.features import features_of
from paramtransfer.advice.first_look import Cheap, cheap_scores, probably_seen, promising_first
from paramtransfer.advice.policy import FRESH, LEAST_PAIRS, believe, decide, variance_of_a_pair
from paramtransfer.advice.search import Limits, Search, Trained, search
from paramtransfer.advice.settings import Candidate, Question
from paramtransfer.advice.target import SECONDS_TAG, check_target, recorded_seconds, seconds_of_training, target_of
from paramtransfer.advice.verdict import Advice, Row, Spent
from paramtransfer.advice.winning_start import FILE, as_file, fresh_start, loading_lines, start_of
from paramtransfer.errors import ConfigError, TrainingError
from paramtransfer.experiment.job import Job
from paramtransfer.experiment.run import foreign_state, run
from paramtransfer.metrics import GAIN, VALIDATION_CURVE, sem_of
from paramtransfer.stage import Stage
from paramtransfer.statistics import Estimate, pooled
from paramtransfer.tracking.claims import Session
from paramtransfer.tracking.store import Store
from paramtransfer.transfer.callback import Choosing

MakeJob = Callable[[Candidate, int | None, int | None], Job]
"""The job of a candidate with so many epochs and a seed; None: as the configuration says."""
_PAIR = 2  # trainings

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Where an advice is."""

    run_id: str
    folder: str
    """With its files."""
    advice: Advice
    loading: str
    """Three lines of Python that load the start."""
    runs: Mapping[Stage, str]
    """Of the best candidate's first whole training that has not diverged; empty without one."""


class Advisor:
    """Answers one question.

    Args:
        question: what is asked.
        make_job: makes the trainings of each candidate.
        store: where they are found and kept.
        tags: set on the runs that are used.

    Raises:
        ConfigError: a candidate or a target that does not fit, or a budget too small for one comparison; before
            anything is trained.
    """

    def __init__(self, question: Question, make_job: MakeJob, store: Store, *, tags: Mapping[str, str]) -> None:
        self._question, self._make_job, self._store, self._tags = question, make_job, store, dict(tags)
        self._candidates = {candidate.name: candidate for candidate in question.candidates}
        self._jobs = {name: make_job(candidate, None, None) for name, candidate in self._candidates.items()}
        self._job = next(iter(self._jobs.values()))
        self._limits = Limits(
            seconds=60 * question.minutes,
            epochs=target_of(self._job).epochs,
            seeds=question.seeds,
            first_seed=self._job.seed,
        )
        self._runs: dict[tuple[str, int, int], dict[Stage, str]] = {}
        self._reused = 0
        for candidate in question.candidates:
            self._check_rule(candidate)
        check_target(self._job, make_job(question.candidates[0], None, self._job.seed + 1))
        self._scores = {source: self._score(source) for source in question.sources}
        self._check_budget()

    def _check_rule(self, candidate: Candidate) -> None:
        """Refuse what is not one start against the same fresh start as the others' are."""
        job, key = self._jobs[candidate.name], f"advise.rules.{candidate.rule}"
        if not job.transfer.needs_upstream:
            raise ConfigError(f"{key}: must inherit; the fresh start is tried anyway")
        if isinstance(job.transfer, Choosing):
            raise ConfigError(f"{key}: must be one start, not a choice among several")
        ours, first = job.stages["baseline"], self._job.stages["baseline"]
        if ours.fingerprint != first.fingerprint:
            keys = sorted({**ours.settings, **first.settings})
            differing = [each for each in keys if ours.settings.get(each) != first.settings.get(each)]
            raise ConfigError(
                f"{key}: must leave the fresh start as advise.rules.{self._question.candidates[0].rule} does, over "
                f"which gains are; theirs differ in {', '.join(differing) or 'code'}"
            )

    def _score(self, source: str) -> Cheap:
        """Of an upstream, on the target's training images."""
        job = next(self._jobs[name] for name, candidate in self._candidates.items() if candidate.source == source)
        data, device = target_of(job), torch.device(job.trainer.device)
        state = foreign_state(job, lambda run_id: self._store.result(run_id).state)
        network = job.model.upstream(state, data).to(device)
        return cheap_scores(*features_of(network, data.calibration_batches(device)))

    def _check_budget(self) -> None:
        needed = _PAIR * seconds_of_training(self._job, self._store) / 60
        if needed > self._question.minutes:
            raise ConfigError(
                f"advise.minutes={self._question.minutes:g}: must be at least about {needed:.2g}, what one comparison "
                f"takes: {_PAIR} trainings of task.downstream.epochs={self._limits.epochs}"
            )

    def answer(self, *, command: str, config: str) -> Kept:
        """Train what the budget allows, and keep the verdict.

        Args:
            command: the command line.
            config: the resolved configuration, as YAML.
        """
        with Session(self._store) as session:
            session.bury_dead()
            run_id = session.create(
                name=f"advise {' '.join(self._question.sources)}",
                tags={"stage": "advise", "command": command, **self._tags},
                params={"minutes": self._question.minutes, "from": list(self._question.sources)},
                files={"config.yaml": config},
            )
            session.begin(run_id)
            self._tags |= {f"advise.{run_id}": "used"}
            order = promising_first(self._scores)
            names = sorted(self._candidates, key=lambda name: self._rank(name, order))
            found = search(names, self._train, self._limits)
            advice = self._conclude(found, names)
            kept = self._keep(run_id, advice)
            session.end(run_id, "FINISHED")
        return kept

    def _rank(self, name: str, order: Sequence[str]) -> tuple[int, int]:
        """Each upstream by its first rule before any by its second: where from matters more than how."""
        candidate = self._candidates[name]
        return list(self._question.rules).index(candidate.rule), order.index(candidate.source)

    def _train(self, name: str, epochs: int, seed: int) -> Trained:
        candidate = self._candidates.get(name, self._question.candidates[0])
        job = self._make_job(candidate, epochs, seed)
        stage: Stage = "baseline" if name == FRESH else "downstream"
        wanted = replace(job, stages={stage: job.stages[stage]}) if name == FRESH else job
        num_images = len(target_of(job).parts["val"].index_N)
        started = time.monotonic()
        try:
            results = run(wanted, self._store, tags=self._tags)
        except TrainingError as error:
            if name == FRESH:
                raise
            log.warning(f"{name} epochs={epochs} seed={seed}: counts as wrong on all images ({error})")
            return Trained(accuracy=0.0, num_images=num_images, seconds=time.monotonic() - started)
        self._store.settle()
        run_id = results[stage].run_id
        if not results[stage].reused:
            self._store.tag(run_id, {SECONDS_TAG: f"{time.monotonic() - started:.3f}"})
        self._runs[name, epochs, seed] = {each: result.run_id for each, result in results.items()}
        self._reused += results[stage].reused
        kept = self._store.run(run_id)
        accuracy, seconds = kept.metrics[VALIDATION_CURVE], recorded_seconds(kept)
        words = "reused" if results[stage].reused else f"{seconds:.1f} s"
        log.info(f"{name} epochs={epochs} seed={seed}: validation accuracy {accuracy:.4f} ({words})")
        return Trained(accuracy=accuracy, num_images=num_images, seconds=seconds)

    def _conclude(self, found: Search, names: Sequence[str]) -> Advice:
        pairs = {name: list(found.whole_pairs(name).values()) for name in found.finalists}
        decision = decide(believe(pairs, prior=self._question.prior), self._question.thresholds)
        gains = [self._test_gain(runs) for runs in self._wholes(decision.best)]
        rule = self._candidates[decision.best].rule if decision.best else ""
        return Advice(
            question=self._question,
            decision=decision,
            rows=[self._row(name, found) for name in names],
            settings=self._question.rules.get(rule) or {},
            on_test=pooled([gain.mean for gain in gains], [gain.sem for gain in gains], [1] * len(gains))
            if gains
            else None,
            num_test=len(gains),
            num_diverged=len(found.whole_pairs(decision.best)) - len(gains) if decision.best else 0,
            seen=probably_seen(self._scores),
            spent=Spent(seconds=found.seconds, trainings=len(found.trained), reused=self._reused),
        )

    def _wholes(self, best: str | None) -> list[dict[Stage, str]]:
        """The runs of each whole training of a candidate that has not diverged."""
        keys = [(best or "", self._limits.epochs, seed) for seed in self._limits.whole_seeds]
        return [self._runs[key] for key in keys if key in self._runs]

    def _test_gain(self, runs: Mapping[Stage, str]) -> Estimate:
        """On test images: looked at when everything is decided."""
        metrics = self._store.run(runs["downstream"]).metrics
        return Estimate(metrics[GAIN], metrics[sem_of(GAIN)])

    def _row(self, name: str, found: Search) -> Row:
        epochs, score = found.longest(name), self._scores[self._candidates[name].source]
        pairs = list((found.whole_pairs(name) or found.pairs(name, epochs)).values())
        num_diverged = sum(key[0] == name and key not in self._runs for key in found.trained)
        return Row(
            candidate=name,
            knn=score.knn,
            logme=score.logme,
            epochs=epochs,
            gain=fmean(pair.gain for pair in pairs) if pairs else nan,
            sem=(variance_of_a_pair([pairs]) / len(pairs)) ** 0.5 if len(pairs) >= LEAST_PAIRS else nan,
            num=len(pairs),
            num_images=len(target_of(self._job).parts["val"].index_N),
            state=found.states[name] + f", {num_diverged} diverged" * (num_diverged > 0),
        )

    def _keep(self, run_id: str, advice: Advice) -> Kept:
        """Verdict, table and start in the run."""
        job = self._jobs.get(advice.start, self._job)
        start = fresh_start(job) if advice.start == FRESH else start_of(job, self._store)
        record = self._store.run(run_id)
        loading = loading_lines(job, record)
        table = f"```text\n{advice.table().to_string(index=False)}\n```"
        text = "\n\n".join([*advice.sentences(), table, f"```python\n{loading}\n```"]) + "\n"
        files: dict[str, str | bytes] = {
            "verdict.md": text,
            "verdict.json": json.dumps(advice.as_dict(), indent=1, ensure_ascii=False) + "\n",
            "table.csv": advice.table().to_csv(index=False),
            FILE: as_file(start),
        }
        self._store.write_files(run_id, files)
        self._store.describe(run_id, "\n\n".join(advice.sentences()))
        metrics = {"advise/harm": advice.decision.harm, "advise/seconds": advice.spent.seconds}
        if advice.on_test is not None:
            metrics |= {"advise/test_gain": advice.on_test.mean, "advise/test_gain_sem": advice.on_test.sem}
        self._store.log_metrics(run_id, metrics)
        wholes = self._wholes(advice.decision.best)
        runs = wholes[0] if wholes else {}
        return Kept(run_id=run_id, folder=record.artifacts, advice=advice, loading=loading, runs=runs)
