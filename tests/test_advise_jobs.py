"""Whole advices, in this process: small networks on pictures made here."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import timm
import torch
from image_files import write_folder
from safetensors.torch import load_file

from paramtransfer import Selection, inherit, plan_filters
from paramtransfer.advice import advisor
from paramtransfer.advice.settings import Question
from paramtransfer.advice.winning_start import as_file, loading_lines, start_of
from paramtransfer.errors import TrainingError
from paramtransfer.interrupts import Interrupted
from paramtransfer.tracking.runs import RunRecord
from paramtransfer.tracking.store import Store

Fixture = Callable[..., Any]

SMALL = [
    *("model.upstream.name=test_resnet", "model.downstream.name=test_resnet", "dataset.size=32", "optim.lr=0.01"),
    *("trainer.progress=false", "task.downstream.epochs=2"),
]
QUESTION = ["experiment=advise", "dataset.root=photos", "advise.seeds=2", "advise.rules={half: null, layers: null}"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos and two checkpoints."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_folder(tmp_path / "photos", train=20, classes=["a", "b", "c", "d"])
    for name in ("mine.pt", "other.pt"):
        torch.save(timm.create_model("test_resnet", num_classes=4).state_dict(), tmp_path / name)
    return tmp_path


def test_advice_from_start_to_end(
    folder: Path, run_here: Fixture, runs_of: Fixture, monkeypatch: pytest.MonkeyPatch, compose_job: Fixture
) -> None:
    """A run and a file as upstreams. Interrupted, it leaves nothing RUNNING; it goes on; then it trains nothing.

    Made to decide for the run, it keeps and loads the start that a plan carried out by hand makes of the run's weights.
    """
    first = run_here(
        folder, "experiment=own_images", "dataset.root=photos", "model.upstream.weights=other.pt", tiny=SMALL
    )
    assert first.returncode == 0, first.stderr
    (upstream,) = runs_of(folder)["upstream"]
    question = [*QUESTION, f"advise.from=[mine.pt,{upstream.info.run_id}]"]

    calls, run = [], advisor.run

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise Interrupted("interrupted")
        return run(*arguments, **options)

    monkeypatch.setattr(advisor, "run", interrupted)
    output = run_here(folder, *question, tiny=SMALL)
    assert output.returncode != 0
    assert output.stderr.endswith("interrupted: the same command goes on with the advice\n")
    monkeypatch.setattr(advisor, "run", run)
    assert runs_of(folder)["advise"][0].info.status == "KILLED"
    best, decide = f"{upstream.info.run_id} all", advisor.decide
    monkeypatch.setattr(advisor, "decide", lambda *found: replace(decide(*found), verdict="inherit", best=best))
    outputs = [run_here(folder, *question, tiny=SMALL) for _ in range(2)]
    assert [output.returncode for output in outputs] == [0, 0], outputs[0].stderr

    runs = runs_of(folder)
    assert {run.info.status for found in runs.values() for run in found} == {"FINISHED", "KILLED"}
    one, other = runs["advise"][1:]
    trained = [run for stage in ("baseline", "downstream") for run in runs[stage]]
    assert (
        len(trained) == 2 + 2 * 2 + 1
    )  # a fresh start and two candidates by two seeds; the first job's own downstream
    assert len([run for run in trained if f"advise.{other.info.run_id}" in run.data.tags]) == 6
    kept = [Path(run.info.artifact_uri.removeprefix("file://")) for run in (one, other)]
    verdicts = [json.loads((path / "verdict.json").read_text()) for path in kept]
    assert [verdict["spent"].pop("reused") for verdict in verdicts] == [2, 6]
    for verdict in verdicts:
        del verdict["sentences"]  # which say the same in words
    assert verdicts[0] == verdicts[1]
    assert verdicts[0]["spent"]["trainings"] == 6
    assert str(kept[1]) in outputs[1].stdout.splitlines()[-2]

    table = pd.read_csv(kept[0] / "table.csv")
    assert sorted(table["candidate"]) == sorted(["mine.pt all", f"{upstream.info.run_id} all"])
    assert set(table["n"]) == {2}
    assert set(table["images"]) == {8}  # a tenth of 20 of each of four classes
    accuracies = {
        (run.data.tags["stage"], run.data.params["seed"], run.data.tags.get("upstream_run_id")): run.data.metrics
        for run in trained
        if f"advise.{other.info.run_id}" in run.data.tags
    }
    source = {run.info.run_id: run.data.params["model.upstream.weights"] for run in runs["upstream"]}
    for _, row in table.iterrows():
        own = [
            key for key in accuracies if key[2] and (len(source[key[2]]) == 32) == (row["candidate"] != "mine.pt all")
        ]
        for metric, expected in (("val/acc", row["gain"]), ("test/acc", verdicts[0]["gain_on_test"]["mean"])):
            gains = [accuracies[key][metric] - accuracies["baseline", key[1], None][metric] for key in own]
            if metric == "val/acc" or row["candidate"] == best:
                assert sum(gains) / 2 == pytest.approx(expected)

    text = (kept[0] / "verdict.md").read_text()
    lines = text.splitlines()[-4:-1]
    assert "\n".join(lines) in outputs[0].stdout
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    state = names["model"].state_dict()
    assert verdicts[0]["start"] == best
    weights = torch.load(folder / "other.pt")
    network = timm.create_model("test_resnet", num_classes=4)
    network.load_state_dict(weights)
    monkeypatch.chdir(folder)
    job = compose_job("experiment=own_images", "dataset.root=photos", "model.upstream.weights=mine.pt", *SMALL)
    fresh = job.model.build(job.tasks.data("downstream", seed=0))
    plan = plan_filters(network, fresh)
    expected, _ = inherit(plan, weights, fresh.state_dict(), Selection(alpha=1, seed=0))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert any(not torch.equal(tensor, fresh.state_dict()[name]) for name, tensor in state.items())


def test_start_is_what_the_rule_gives_the_fresh_network(
    folder: Path, compose_job: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a plan carried out by hand; three lines load it."""
    monkeypatch.chdir(folder)
    job = compose_job(
        "experiment=own_images", "dataset.root=photos", "model.upstream.weights=mine.pt", "alpha=0.5", "seed=3", *SMALL
    )
    state = start_of(job, Store(folder / "mlruns"))
    upstream = timm.create_model("test_resnet", num_classes=4)
    upstream.load_state_dict(torch.load("mine.pt"))
    fresh = job.model.build(job.tasks.data("downstream", seed=3))
    plan = plan_filters(upstream, fresh)
    expected, _ = inherit(plan, upstream.state_dict(), fresh.state_dict(), Selection(alpha=0.5, seed=3))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    Path("start.safetensors").write_bytes(as_file(state))
    names: dict[str, Any] = {}
    run = RunRecord(
        run_id="5a",
        name="",
        status="FINISHED",
        started=0.0,
        artifacts=str(folder),
        tags={},
        params={},
        metrics={},
    )
    exec(loading_lines(job, run), names)
    loaded = names["model"].state_dict()
    with mock.patch("mlflow.artifacts.download_artifacts", {"runs:/5a/start.safetensors": "start.safetensors"}.get):
        exec(loading_lines(job, replace(run, artifacts="mlflow-artifacts:/1/5a/artifacts")), names)
    assert all(torch.equal(tensor, names["model"].state_dict()[name]) for name, tensor in loaded.items())
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in load_file("start.safetensors").items())


def test_a_candidate_that_diverges_is_the_worst(
    folder: Path, run_here: Fixture, runs_of: Fixture, monkeypatch: pytest.MonkeyPatch, compose_job: Fixture
) -> None:
    """The others are compared all the same; of the best one what has not diverged is tested, and it says so."""
    run = advisor.run

    def diverging(job: Any, *arguments: Any, **options: Any) -> Any:
        if "downstream" in job.stages and (job.transfer.alpha == 0.5 or job.seed == 0):
            raise TrainingError("training diverged: the loss is nan after epoch 1")
        return run(job, *arguments, **options)

    monkeypatch.setattr(advisor, "run", diverging)
    question = [*QUESTION[:-1], "advise.from=[mine.pt]", "advise.rules={layers: null}"]
    output = run_here(folder, *question, tiny=SMALL, more=["-m"])
    assert output.returncode == 0, output.stderr
    runs = runs_of(folder)
    (advice,), (tested,) = runs["advise"], runs["downstream"]
    kept = Path(advice.info.artifact_uri.removeprefix("file://"))
    table = pd.read_csv(kept / "table.csv").set_index("candidate")
    assert table["gain"]["mine.pt half"] < -0.1
    assert table["n"].tolist() == [2, 2]
    assert table["state"].to_dict() == {"mine.pt all": "finalist, 1 diverged", "mine.pt half": "finalist, 2 diverged"}
    assert "Of its 2 whole trainings 1 diverged: " in (kept / "verdict.md").read_text()
    verdict = json.loads((kept / "verdict.json").read_text())
    assert (verdict["decision"]["best"], verdict["gain_on_test"]["n"]) == ("mine.pt all", 1)
    assert tested.data.params["seed"] == "1"
    assert verdict["gain_on_test"]["mean"] == pytest.approx(tested.data.metrics["test/gain"])

    names: dict[str, Any] = {}
    monkeypatch.chdir(folder)
    exec("\n".join((kept / "verdict.md").read_text().splitlines()[-4:-1]), names)
    job = compose_job("experiment=own_images", "dataset.root=photos", "model.upstream.weights=mine.pt", *SMALL)
    fresh = job.model.build(job.tasks.data("downstream", seed=0)).state_dict()
    assert verdict["start"] == "fresh"
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in names["model"].state_dict().items())


ASKED: dict[str, Any] = {
    "sources": ["mine.pt"],
    "rules": {"all": {"transfer": "filters", "alpha": 1}, "half": None},
    "minutes": 30,
    "seeds": 5,
    "risk": 0.05,
    "worth": 0.01,
    "prior": 0.05,
}


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("sources", "mine.pt", "advise.from=mine.pt: must be a list of upstreams"),
        (
            "sources",
            [123],
            "advise.from=123: must be run ids, checkpoint files or DEFAULT, in quotes if of digits alone",
        ),
        ("sources", ["mine.pt", "mine.pt"], "must be different upstreams"),
        ("rules", {"all": None}, "advise.rules={'all': None}: must be a rule by name"),
        ("rules", {"all": "filters"}, "advise.rules.all=filters: must be null or the keys that it sets"),
        ("minutes", 0, "advise.minutes=0: must be a finite number above 0"),
        ("seeds", 1, "advise.seeds=1: must be a whole number of at least 2"),
        ("risk", 0.5, "advise.risk=0.5: must be a number between 0 and 0.5"),
        ("worth", -1, "advise.worth=-1: must be a finite number of at least 0"),
    ],
)
def test_keys_out_of_range(key: str, value: object, sentence: str) -> None:
    assert [candidate.name for candidate in Question(**ASKED).candidates] == ["mine.pt all"]
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Question(**{**ASKED, key: value})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["advise.from=[]"], "advise.from=[]: must be a list of upstreams: [DEFAULT,mine.pt,RUN_ID]"),
        (["advise.rules={all: {transfer: filterz}}"], "advise.rules.all: transfer=filterz: must be one of "),
        (["+advise.rules.all.alhpa=1"], "advise.rules.all: alhpa: no such key; did you mean alpha?\n"),
        (
            ["advise.rules={all: {alhpa: 1}}"],
            "advise.rules.all.alhpa: no such key beside the other settings; --help lists them, and "
            "+advise.rules.all.alhpa=value adds one\n",
        ),
        (["advise.rules.all.alpha=2"], "advise.rules.all: alpha=2: must be a number from 0 to 1\n"),
        (["advise.rules={}"], "advise.rules={}: must name rules, "),
        (["alpha=0.5"], "alpha=0.5: must be left out with experiment=advise, each of whose advise.rules sets alpha\n"),
        (["model.upstream.weights=mine.pt"], "must be left out with experiment=advise, whose upstreams are in "),
        (
            ["task.val_share=0.5", "advise.rules={all: {transfer: chosen_images}}"],
            "advise.rules.all: must be one start, not a choice among",
        ),
        (["advise.rules={all: {transfer: none}}"], "advise.rules.all: must inherit; the fresh start is tried anyway"),
        (
            ["advise.rules={half: {transfer: filters, alpha: 0.5, optim.lr: 0.02}}"],
            "advise.rules.half: must leave the fresh start as advise.rules.all does, over which gains are; theirs "
            "differ in optim.lr\n",
        ),
        (["advise.minutes=1e-6"], "advise.minutes=1e-06: must be at least about "),
        (["advise.from=[mine.pt,vit.pt]"], "advise.from=vit.pt: must be weights of test_resnet, but "),
        (
            ["advise.from=[mine.pt,nobody.pt]", "dry_run=true"],
            "advise.from=nobody.pt: must be a run id, a checkpoint file",
        ),
        (["dataset.root=few"], "few has 1 images to train on: must have two or more with experiment=advise"),
        (["task=class_split", "task.ratio=1"], "task.target_classes=null: must name the target's classes"),
        (["reuse=false"], "reuse=false: must be true with experiment=advise"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_questions_train_nothing(
    words: list[str], sentence: str, folder: Path, run_here: Fixture, runs_of: Fixture
) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), folder / "vit.pt")
    write_folder(folder / "few", train=20, classes=["a", "b"])
    for path in sorted((folder / "few" / "train" / "b").iterdir())[2:]:
        path.unlink()
    output = run_here(folder, *QUESTION, "advise.from=[mine.pt]", *words, tiny=SMALL)
    assert output.returncode == 1
    assert sentence in output.stderr
    assert len(output.stderr.strip().splitlines()) <= 2  # what is said of few images beside it
    assert not runs_of(folder)
