"""Whole jobs on images, in this process: small networks of timm on pictures made here."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pandas as pd
import pytest
import timm
import torch
from image_files import is_for_images, write_cifar, write_folder
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from torchvision import datasets
from torchvision.models import get_model_weights

from paramtransfer.errors import ConfigError
from paramtransfer.experiment.run import run
from paramtransfer.metrics import BALANCED_ACCURACY
from paramtransfer.report.terminal import print_job
from paramtransfer.stage import SIDES
from paramtransfer.tracking.store import Store
from paramtransfer.transfer.callback import ParameterTransfer

CONF = Path(__file__).parents[1] / "conf"
FILES = [
    file
    for folder in CONF.iterdir()
    for file in sorted(folder.glob("*.yaml"))
    if is_for_images(file) and file.stem != "image_defaults"
]
IMAGES = ["task=class_split", "dataset=image_folder", "model=network_pair", "optim=sgd", "trainer.progress=false"]
SMALL = [
    *("model.upstream.name=test_resnet", "model.downstream.name=test_resnet", "optim.lr=0.01", "task.batch_size=16"),
    *("task.upstream.epochs=2", "task.downstream.epochs=2", "++task.ratio=2"),
]

Fixture = Callable[..., Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images") / "root", train=30)


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def job(root: Path, compose_job: Fixture) -> Fixture:
    """A small job on images, and more settings after its own."""
    return lambda *overrides: compose_job(*IMAGES, f"++dataset.root={root}", *SMALL, *overrides)


def files_of(run: Any) -> Path:
    return Path(run.artifacts)


def test_job_on_images(tmp_path: Path, job: Fixture) -> None:
    """Three runs with curves, parameters of their own and an account of every tensor; found again, trained once."""
    store = Store(tmp_path)
    results = run(job(), store, tags={})
    runs = {stage: store.run(result.run_id) for stage, result in results.items()}
    assert {found.status for found in runs.values()} == {"FINISHED"}
    assert runs["downstream"].name == "downstream α=0.5 test_resnet ratio=2 seed=0"
    for found in runs.values():
        assert {"test/acc", "test/acc_sem", "train/loss", "val/acc", "time/train"} <= found.metrics.keys()
        assert len(store.history(found.run_id, "val/acc")) == 2
        assert "dataset.root" not in found.params
        assert found.params["dataset.content"]
    params = {stage: found.params.keys() for stage, found in runs.items()}
    assert not {key for key in params["upstream"] if "downstream" in key}
    assert not {key for key in params["baseline"] if "upstream" in key} | {"task.ratio"} & params["baseline"]
    account = json.loads((files_of(runs["downstream"]) / "transfer.json").read_text())["tensors"]
    state = results["downstream"].state
    assert {row["target"]: row["of_elements"] for row in account} == {name: t.numel() for name, t in state.items()}
    assert {row["status"] for row in account} == {"partly inherited", "fresh"}
    gain = results["downstream"].metrics["test/acc"] - results["baseline"].metrics["test/acc"]
    assert results["downstream"].metrics["test/gain"] == pytest.approx(gain)

    again = run(job(), store, tags={})
    assert all(result.reused for result in again.values())
    other = run(job("task.ratio=3"), store, tags={})
    assert {stage for stage, result in other.items() if result.reused} == {"baseline"}
    other = run(job("alpha=1"), store, tags={})
    assert {stage for stage, result in other.items() if result.reused} == {"baseline", "upstream"}


def test_nothing_inherited_is_the_baseline(tmp_path: Path, job: Fixture) -> None:
    """Bit for bit: same start, batches, augmentation and noise; another seed trains otherwise."""
    results = run(job("transfer=none", "task.downstream.noise=5"), Store(tmp_path), tags={})
    ours, theirs = results["downstream"].state, results["baseline"].state
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    other = run(job("transfer=none", "task.downstream.noise=5", "seed=1"), Store(tmp_path), tags={})["baseline"].state
    assert not torch.equal(other["conv1.0.weight"], theirs["conv1.0.weight"])


def test_recalibrated_statistics_are_those_of_the_targets_images(tmp_path: Path, job: Fixture) -> None:
    """Mean and variance of what the first convolution puts out, over the batches, before the first step; seeded."""
    made = job("transfer.batchnorm=recalibrate", "+model.downstream.drop_path_rate=0.5")
    data = made.tasks.data("downstream", seed=0)
    upstream = made.model.upstream(None, data)
    states = []
    for _ in range(2):
        torch.rand(1)  # the state of the global generator does not matter
        model = made.model.build(data)
        module = made.training(model)
        callback = ParameterTransfer(made.transfer, upstream, seed=0)
        trainer = SimpleNamespace(datamodule=data, ckpt_path=None)
        callback.setup(trainer, module, "fit")
        callback.on_fit_start(trainer, module)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    with torch.no_grad():
        outputs = [model.conv1[0](images) for images, _ in data.calibration_batches(torch.device("cpu"))]
    expected = torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0)
    torch.testing.assert_close(states[0]["conv1.1.running_mean"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        pytest.param(["dataset.in_memory=false", "dataset.num_workers=1"], 0, id="decoded by a worker process"),
        pytest.param(["trainer.channels_last=true"], 1e-4, id="channels last"),
        pytest.param(["trainer.precision=bf16-mixed"], 0.1, id="bf16"),
    ],
)
def test_ways_to_compute_train_alike(options: list[str], tolerance: float, tmp_path: Path, job: Fixture) -> None:
    """The same batches, and the same weights to the precision of the arithmetic."""
    states = [run(job("transfer=none", *more), Store(tmp_path), tags={})["baseline"].state for more in (options, [])]
    theirs, ours = (torch.cat([tensor.double().flatten() for tensor in state.values()]) for state in states)
    distance = float((theirs - ours).norm() / ours.norm())
    assert distance <= tolerance
    assert (distance > 1e-5) == (tolerance > 1e-3)


def test_deterministic_algorithms_are_asked_for(job: Fixture) -> None:
    """While a trainer that asks for them is in use, and not by the next one."""
    for asked in (True, False):
        job(f"trainer.deterministic={asked}").trainer("baseline", epochs=1, logger=None, callbacks=[])
        assert torch.are_deterministic_algorithms_enabled() == asked


def test_upstream_weights_from_elsewhere(tmp_path: Path, job: Fixture) -> None:
    """A run id and a checkpoint file give the start of the upstream trained here; its run is tracked, untrained."""
    store = Store(tmp_path)
    trained = run(job(), store, tags={})
    path = tmp_path / "upstream.pt"
    torch.save({"state_dict": {f"model.{name}": t for name, t in trained["upstream"].state.items()}}, path)
    save_file(
        {name: t.contiguous() for name, t in trained["upstream"].state.items()}, tmp_path / "upstream.safetensors"
    )
    for weights in (trained["upstream"].run_id, str(path), str(tmp_path / "upstream.safetensors")):
        results = run(job(f"model.upstream.weights={weights}"), store, tags={})
        upstream = store.run(results["upstream"].run_id)
        assert upstream.params["model.upstream.weights"]
        assert "test/acc" not in upstream.metrics
        ours, theirs = results["downstream"].state, trained["downstream"].state
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_two_datasets(tmp_path: Path, root: Path, compose_job: Fixture) -> None:
    """task=whole: the upstream learns another folder's classes."""
    source = write_folder(tmp_path / "source", train=20, classes=["red", "green", "blue"])
    dataset = OmegaConf.load(CONF / "dataset" / "image_folder.yaml")
    dataset.root, dataset.cache_dir = str(source), str(tmp_path / "cache")
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    given = json.dumps(OmegaConf.to_container(dataset)).replace('"', "")
    settings = [*IMAGES, "task=whole", f"dataset.root={root}", f"task.upstream.dataset={given}"]
    made = compose_job(*settings)
    assert [len(made.tasks.classes_of(side, 0)) for side in ("upstream", "downstream")] == [3, 10]
    source_content = made.stages["upstream"].settings["task.upstream.dataset.content"]
    assert source_content != made.stages["baseline"].settings["dataset.content"]
    Image.new("RGB", (32, 32), "red").save(source / "train" / "red" / "000.png")
    (own := json.loads(json.dumps(OmegaConf.to_container(dataset))))["root"] = f"{root}/../root"
    with pytest.raises(ConfigError, match=r"task\.upstream\.dataset=\S*root: must be another dataset with task=whole"):
        compose_job(*settings, f"task.upstream.dataset={json.dumps(own | {'split_seed': 1})}".replace('"', ""))
    other = compose_job(*settings)
    same = {stage for stage in made.stages if made.stages[stage].fingerprint == other.stages[stage].fingerprint}
    assert same == {"baseline"}


def test_uneven_classes(
    tmp_path: Path, compose_job: Fixture, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the smallest class comes to is said before training; the mean accuracy of classes stands beside the other.

    So are options that reach one network alone, and classes that upstream and target share.
    """
    root = write_folder(tmp_path / "root", train=60, test=6, classes=["a", "b"])
    for path in [*sorted((root / "train" / "b").iterdir())[4:], *sorted((root / "test" / "b").iterdir())[2:]]:
        path.unlink()
    source = write_folder(tmp_path / "source", train=20, classes=["B", "c"])
    given = ["+dataset@task.upstream.dataset=image_folder", f"task.upstream.dataset.root={source}"]
    more = ["task=whole", f"dataset.root={root}", *given, "+model.downstream.drop_rate=0.1"]
    made = compose_job(*IMAGES, *SMALL[:-1], *more)
    assert "b has 3 images to train on, 1 to choose by and 2 to test on; a has 54 to train on" in caplog.text
    assert "model.downstream.drop_rate=0.1 reaches the downstream alone" in caplog.text
    assert "its classes include 1 of the target's 2 classes: b" in caplog.text
    results = run(made, Store(tmp_path), tags={})
    labels = made.tasks.data("downstream", seed=0).parts["test"].labels_N
    hits = results["downstream"].hits_RN[0].double()
    expected = (hits[labels == 0].mean() + hits[labels == 1].mean()) / 2
    assert results["downstream"].metrics[BALANCED_ACCURACY] == pytest.approx(expected.item())
    assert BALANCED_ACCURACY not in results["upstream"].metrics
    print_job(made, results, seconds=1)
    assert "with, mean of classes" in capsys.readouterr().out


def test_divergence_ends_with_a_sentence(tmp_path: Path, job: Fixture) -> None:
    """The run is FAILED and says why."""
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="training diverged"):
        run(job("optim.lr=1e30"), store, tags={})
    assert [found.status for found in store.runs("tags.stage != ''")] == ["FAILED", "KILLED", "KILLED"]  # not begun


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["task.target_classes=[cat,dog,bird,deer,frog,ship]"], r"task=class_split: must have at least 12 classes"),
        (["task.batch_size=1"], r"task\.batch_size=1: must be a whole number of at least 2"),
        (["replicates=3"], r"replicates=3: must be 1 with images: sweep seed"),
        (["model.upstream.name=resnet3"], r"model\.upstream\.name=resnet3: must be a network of torchvision or timm"),
        (["model.stem=cifar"], r"model\.stem=cifar: must be imagenet for test_efficientnet"),
        (["+model.upstream.foo=1"], r"model\.upstream: test_efficientnet has no such option"),
        (["transfer.channels=some"], r"transfer\.channels=some: must be auto or independent or consistent"),
        (["model.upstream.name=test_vit"], r"transfer=filters: VisionTransformer has blocks, not filters"),
        (["model.upstream.weights=no.pt"], r"model\.upstream\.weights=no\.pt: must be a run id, a checkpoint file"),
        (
            ["model.upstream.weights=DEFAULT", "+model.upstream.drop_rate=0.1"],
            r"model\.upstream\.weights=DEFAULT: must be null, a checkpoint or a run id for a network with",
        ),
        (
            ["transfer=layers", *(f"model.{side}.name=deit_tiny_patch16_224" for side in SIDES.values())],
            r"task\.input_size=32: must be a size that deit_tiny_patch16_224 takes \(Input height.*such as 224",
        ),
        (
            ["dataset.mean=[0.5,0.5,0.5]"],
            r"dataset\.mean=.*: must be three positive .* multiply values of 0 to 1",
        ),
        (["task.val_share=1"], r"task\.val_share=1: must be a number from 0 to below 1"),
        (
            ["+model.downstream.in_chans=1"],
            r"model\.downstream\.name=\w+: cannot be trained with its options",
        ),
        (
            ["+model.downstream.features_only=true"],
            r"model\.downstream\.name=.*: it gives a list instead of",
        ),
        (["model.downstream.name=googlenet"], r"model\.downstream\.name=googlenet: .* aux_logits=false"),
        (
            ["+model.downstream.pretrained=true"],
            r"model\.downstream\.pretrained=True: must be left out; trained",
        ),
        (["+model.upstream.num_classes=5"], r"model\.upstream\.num_classes=5: must be left out; the task says"),
    ],
)
def test_wrong_settings_are_refused(overrides: list[str], sentence: str, job: Fixture) -> None:
    """One sentence, before there is a run."""
    efficientnet = ["model.upstream.name=test_efficientnet", "model.downstream.name=test_efficientnet"]
    with pytest.raises(ConfigError, match=rf"^{sentence}[^\n]*$"):
        job(*efficientnet, *overrides)


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        ("dataset=signal_noise", r"dataset=SignalNoise: must be image_folder"),
        ("model=two_layer_cnn", r"model=TwoLayerCNNs: must be a pair of image networks"),
        ("optim=gd", r"optim=GradientDescent: must be sgd or adamw"),
        ("task=whole", r"task\.upstream\.dataset=null: must be another dataset with task=whole, or model\.upstream"),
    ],
)
def test_groups_that_are_not_for_images_are_refused(
    group: str, sentence: str, root: Path, compose_job: Fixture
) -> None:
    """One sentence that names what is."""
    where = [] if group.startswith("dataset") else [f"dataset.root={root}"]
    with pytest.raises(ConfigError, match=rf"^{sentence}[^\n]*$"):
        compose_job(*IMAGES, group, *where)


def test_weights_of_another_architecture_are_refused(tmp_path: Path, job: Fixture) -> None:
    """So is a file that holds none; no run is created."""
    store = Store(tmp_path)
    torch.save({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    for name, sentence in (
        ("other", "must be weights of test_resnet, but its keys or shapes differ: it has no conv1"),
        ("list", "must be a checkpoint of tensors by name"),
        ("text", "cannot be read as a checkpoint"),
        ("model", r".*save model\.state_dict\(\), not the model"),
    ):
        with pytest.raises(ConfigError, match=rf"model\.upstream\.weights=\S*{name}\.pt: {sentence}"):
            run(job(f"model.upstream.weights={tmp_path}/{name}.pt"), store, tags={})
    assert not list(store.runs("tags.stage != ''"))


def test_pretrained_weights_say_what_to_do_offline(
    tmp_path: Path, job: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision: the file and its folder; timm: the repository and HF_HOME."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(get_model_weights("resnet18").DEFAULT.value, "url", "http://127.0.0.1:9/resnet18-f37072fd.pth")
    for name, sentence in (
        ("resnet18", rf"put \S*resnet18-f37072fd\.pth in {tmp_path}/hub/checkpoints"),
        ("test_resnet", r"`hf download timm/test_resnet\S*`.*HF_HOME"),
    ):
        with pytest.raises(ConfigError, match=rf"model\.upstream\.weights=DEFAULT: .*{sentence}"):
            run(job("model.upstream.weights=DEFAULT", f"model.upstream.name={name}"), Store(tmp_path), tags={})


def test_norms_and_biases_do_not_decay(job: Fixture) -> None:
    """All others do."""
    module: Any = job("optim.warmup_epochs=0")
    model = module.model.build(module.tasks.data("downstream", seed=0))
    made = module.tasks.optim.configure(model, inherited={}, steps=10, epochs=2)
    decay = {id(p): group["weight_decay"] for group in made["optimizer"].param_groups for p in group["params"]}
    for parameter in model.parameters():
        assert decay[id(parameter)] == (5e-4 if parameter.dim() > 1 else 0)


def test_job_that_chooses_by_halving(tmp_path: Path, job: Fixture) -> None:
    """Validation images decide; what is kept is in the run, its metrics and its account."""
    store = Store(tmp_path)
    result = run(job("transfer=chosen_images", "task.val_share=0.4"), store, tags={})["downstream"]
    assert {"time/choice", "choice/inheriting"} <= result.metrics.keys()
    account = json.loads((files_of(store.run(result.run_id)) / "transfer.json").read_text())
    (replicate,) = account["compared"]["replicates"]
    names = [each["candidate"] for each in replicate["differences"]]
    assert names[0] == "nothing inherited"
    assert replicate["kept"] in names
    with pytest.raises(
        ConfigError, match=r"transfer=chosen_images: must be left out, .*: 2 images to choose by, not 10"
    ):
        job("transfer=chosen_images", "task.val_share=0.01")
    with pytest.raises(ConfigError, match="transfer=chosen: must be chosen_images for a task on images"):
        job("transfer=chosen")


# What ships.


@pytest.mark.parametrize(
    "option", [f"{file.parent.name}={file.stem}" for file in FILES if file.parent.name != "experiment"]
)
def test_every_option_makes_a_job(
    option: str, root: Path, compose_job: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every option for images on disk."""
    where = root
    if "cifar" in option:
        source = datasets.CIFAR10 if option == "dataset=cifar10" else datasets.CIFAR100
        where = write_cifar(root.parent / source.__name__, source, monkeypatch, per_class=2)
    blocks = ["transfer=layers"] if "vit" in option or "deit" in option else []
    alone = ["transfer=none"] if option == "task=whole" else []
    size = ["task.input_size=224"] if "deit" in option else []
    chosen = ["task.val_share=0.4"] if "chosen" in option else []
    made = compose_job(*IMAGES, option, *blocks, *alone, *size, *chosen, f"dataset.root={where}")
    assert made.stages.keys() >= {"baseline", "downstream"}


PAIR = "model=resnet34_resnet18"
EXPERIMENTS = {
    "cifar10": [PAIR],
    "table1_cifar10": [PAIR, "task.ratio=2,4", "seed=0,1"],
    "table1_cifar100": [PAIR, "task.ratio=2", "seed=0"],
    "fig3": [PAIR, "task.downstream.noise=0,10", "seed=0"],
    "sources": [PAIR, "task.ratio=1,2", "seed=0"],
    "budget": [PAIR, "task.downstream.epochs=1,2", "seed=0"],
    "own_images": ["model.upstream.weights=weights.pt", "dataset.size=32"],
    "advise": [
        *("advise.from=[weights.pt]", "advise.rules={half: null, layers: null}", "advise.seeds=2", "dataset.size=32"),
    ],
    "fig4": ["seed=0,1", "dataset.per_class=4", "transfer.layers=[3,4,5]"],
}


FULL = {
    "cifar10": [PAIR, "model.stem=imagenet", "dataset=cifar10"],
    "fig3": [PAIR, "model.stem=imagenet", "task.downstream.noise=0,10", "seed=0"],
    "sources": [PAIR, "model.stem=imagenet", "task.ratio=1,2", "seed=0"],
    "table1_cifar10": [PAIR, "model.stem=imagenet", "task.ratio=2,4", "seed=0,1"],
    "table1_cifar100": [PAIR, "model.stem=imagenet", "task.ratio=2", "seed=0"],
    "fig4": ["seed=0,1", "model.upstream.weights=weights.pt", "transfer.layers=[3,4,5]", "task.batch_size=16"],
}


@pytest.mark.parametrize(
    ("experiment", "scale", "settings"),
    [(name, scale, own) for scale, all_of in (("small", EXPERIMENTS), ("full", FULL)) for name, own in all_of.items()],
)
def test_every_experiment_runs(
    experiment: str,
    scale: str,
    settings: list[str],
    root: Path,
    train_here: Fixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shortened, with smaller networks, on files of its dataset's format: a sweep with its table, or its figure."""
    data, network = root, "test_vit" if experiment == "fig4" else "test_resnet"
    if scale == "full" or "100" in experiment:
        source = datasets.CIFAR100 if "100" in experiment else datasets.CIFAR10
        data = write_cifar(tmp_path / "data", source, monkeypatch, per_class=10)
    small = ["task.upstream.epochs=1", "task.downstream.epochs=1", "trainer.progress=false", f"scale={scale}"]
    names = [f"model.{side}.name={network}" for side in SIDES.values()]
    torch.save(timm.create_model(network, num_classes=4).state_dict(), "weights.pt")  # train_here's folder
    output = train_here(f"experiment={experiment}", f"dataset.root={data}", *small, *settings, *names)
    if experiment in ("cifar10", "own_images", "advise"):
        assert ("Spent: " if experiment == "advise" else "with transfer") in output
        return
    assert "Table, figure and report.html of sweep" in output
    name = "paper_table.csv" if "table1" in experiment else "figure.png"
    (made,) = Path("mlruns/artifacts").glob(f"*/artifacts/{name}")
    if experiment == "table1_cifar10":
        assert pd.read_csv(made)["n"].tolist() == [2, 2, 2]
    jobs = json.loads((made.parent / "jobs.json").read_text())
    assert all(record["error"] is None for record in jobs)


def test_every_experiment_is_tried() -> None:
    """None on disk is left out above."""
    assert {file.stem for file in FILES if file.parent.name == "experiment"} == set(EXPERIMENTS)
