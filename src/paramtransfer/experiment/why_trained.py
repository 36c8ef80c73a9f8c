"""Why a stage is trained again: the nearest finished run, and the settings, code or versions in which it differs."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from paramtransfer.experiment.identity import Identity
from paramtransfer.stage import Stage
from paramtransfer.tracking.runs import RunRecord
from paramtransfer.tracking.store import Store

SETTINGS = "settings"
"""The tag with a hash of a run's settings."""
_NEWEST = 200
_FEW = 3

log = logging.getLogger(__name__)


def why_trained(store: Store, stage: Stage, identity: Identity, *, in_sweep: bool) -> None:
    """Say which finished run comes nearest to a stage that is about to be trained, if any does.

    In a sweep, whose jobs differ in their settings, only where the settings are not the reason.
    """
    condition, at_most = f"attributes.status = 'FINISHED' and tags.stage = '{stage}'", _NEWEST
    if in_sweep:
        condition, at_most = f"{condition} and tags.{SETTINGS} = '{identity.hash_of_settings}'", 1
    finished = store.runs(condition, newest_first=True, at_most=at_most)
    if text := nearest(store, stage, identity, finished):
        log.info(text)


def nearest(store: Store, stage: Stage, identity: Identity, finished: Iterable[RunRecord]) -> str:
    """One sentence on what a stage differs in from the nearest of some finished runs; empty where none is near.

    Args:
        store: keeps what identifies the runs.
        stage: what is to be trained.
        identity: of it.
        finished: among which the nearest is looked for.
    """
    params = {key: str(value) for key, value in identity.settings.items()}
    same = [run for run in finished if run.tags.get("stage") == stage and params.keys() == run.params.keys()]
    if not same:
        return ""
    run = min(same, key=lambda run: len(differing(params, run.params)))
    reasons = [f"{key} {run.params[key]} -> {params[key]}" for key in differing(params, run.params)]
    reasons += _below(store, run, identity)
    shown = reasons[:_FEW] + [f"{len(reasons) - _FEW} more"] * (len(reasons) > _FEW)
    differs = f"differs in {', '.join(shown)}" if shown else "is the same, but its result cannot be used"
    return f"{stage} is trained: the nearest finished run, {run.run_id}, {differs}"


def differing(params: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """The keys in which two runs of the same keys differ."""
    return [key for key in params if params[key] != others[key]]


def _below(store: Store, run: RunRecord, identity: Identity) -> Iterator[str]:
    """The code and the versions in which a run differs."""
    kept: dict[str, Mapping[str, str]] = {}
    with suppress(Exception):  # an older run keeps none, or it cannot be read: then the settings must do
        kept = json.loads(store.read_files(run.run_id, suffix="identity.json")["identity.json"])
    for what, now in (("code", identity.code), ("versions", identity.versions)):
        before = kept.get(what, now)
        for name in sorted({*now, *before}):
            if now.get(name) != before.get(name):
                yield f"{name} {before.get(name)} -> {now.get(name)}" if what == "versions" else f"the code of {name}"
