"""Starts of the two-layer CNN compared by K-fold cross-validation: all starts and folds are trained as one batch.

Shape letters: C candidates, R replicates, N samples, K folds, B = C K trainings, J signs, M filters, D coordinates.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from paramtransfer.checks import flag, refusal, whole
from paramtransfer.dataset.signal_noise import Samples
from paramtransfer.model.two_layer_cnn import TwoLayerCNN
from paramtransfer.stage import Stage
from paramtransfer.task.synthetic import SyntheticTask
from paramtransfer.training.full_batch import FullBatchTraining, is_right, margins
from paramtransfer.transfer.candidates import Account, Chosen, Comparison

_SOFTNESS = 0.5  # of a hit, in standard deviations of the margins


class CrossValidated(Chosen):
    """The start whose held-out margins are best, chosen for each replicate on its own training samples.

    A sample's score is Phi(m / (0.5 s)), m = y f(W; x) by the training that has not seen it and s the standard
    deviation of the start's held-out margins: a hit with a soft edge, so that 100 samples say more than 100 hits would.

    Trainings of different folds share samples, so that their errors are not independent: for p and the verdict the
    standard error of a paired difference is that of independent samples times sqrt(1 + K/(K - 1)), what Nadeau and
    Bengio (2003) derive for random divisions.

    Args:
        folds: K, into which the samples of a replicate are divided at random.
        hindsight: whether the test accuracy of every start is looked up after the choice, to measure it by.
        others: see `Chosen`.
    """

    def __init__(self, *, folds: int, hindsight: bool = False, **others: Any) -> None:
        super().__init__(**others)
        self.hindsight = flag("transfer.hindsight", hindsight)
        self.folds = whole("transfer.folds", folds, at_least=2)

    def identity(self, stage: Stage) -> dict[str, object]:
        own = super().identity(stage)
        return {**own, "folds": self.folds, "hindsight": self.hindsight} if own else own

    def check_target(self, data: object) -> None:
        """Refuse data that starts cannot be compared on.

        Raises:
            ValueError: names the key.
        """
        if not isinstance(data, SyntheticTask):
            raise refusal("transfer", "chosen", "chosen_images for a task on images")
        super().check_target(data)
        if asks_labels := [name for name, made in self.candidates.items() if made.rule.sees_labels]:
            raise refusal("transfer.candidates", asks_labels[0], "without dash, which has seen the labels held out")
        num, least = data.settings.num_samples, 2 * self.folds
        if num < least:
            raise refusal("task.downstream.num_samples", num, f"at least {least} with transfer.folds={self.folds}")

    def compare(
        self, starts: Sequence[Account], module: LightningModule, data: Any, make_trial: Callable[[int], Trainer]
    ) -> Comparison:
        assert isinstance(module, FullBatchTraining)
        scores = []
        for r, rng in enumerate(data.streams("folds")):
            samples, filters_CJMD = _of_replicate(r, data, starts)
            fold_N = torch.from_numpy(rng.permutation(samples.labels_RN.shape[1]) % self.folds)
            scores.append(score(held_out_margins(filters_CJMD, samples, fold_N, module, data.settings.steps)))
        return Comparison(scores, inflation=(1 + self.folds / (self.folds - 1)) ** 0.5)

    def in_hindsight(self, starts: Sequence[Account], module: LightningModule, data: Any) -> Tensor | None:
        if not self.hindsight:
            return None
        assert isinstance(module, FullBatchTraining)
        replicates = range(len(data.samples.labels_RN))
        return torch.stack([_test_accuracy(*_of_replicate(r, data, starts), module, data, r) for r in replicates])


def _of_replicate(replicate: int, data: SyntheticTask, starts: Sequence[Account]) -> tuple[Samples, Tensor]:
    """One replicate's training samples, and its filters (C, J, M, D) in each start."""
    samples = Samples(*(tensor[replicate : replicate + 1] for tensor in data.samples))
    return samples, torch.stack([state["filters"][replicate] for state, _ in starts])


def held_out_margins(
    filters_CJMD: Tensor, samples: Samples, fold_N: Tensor, module: FullBatchTraining, steps: int
) -> Tensor:
    """y f(W; x) of every sample by the training that has not seen it: (C, N).

    A label of 0 in place of -1 or 1 takes a sample out of every gradient; the step size makes up for its share, exactly
    where the folds are of one size.

    Args:
        filters_CJMD: where the trainings start.
        samples: of one replicate.
        fold_N: each sample's fold.
        module: how they are trained.
        steps: gradient steps.
    """
    num, folds = len(filters_CJMD), int(fold_N.max()) + 1
    all_B = _repeated(samples, num * folds)
    is_held_BN = (fold_N == torch.arange(folds)[:, None]).repeat(num, 1)
    trained_B = all_B._replace(labels_RN=all_B.labels_RN * ~is_held_BN)
    solved = _trained(filters_CJMD.repeat_interleave(folds, dim=0), trained_B, module, steps, scale=folds / (folds - 1))
    return (margins(solved, all_B) * is_held_BN).view(num, folds, -1).sum(dim=1)


def _repeated(samples: Samples, num: int) -> Samples:
    """The samples of one replicate for so many trainings."""
    return Samples(*(tensor.expand(num, *tensor.shape[1:]) for tensor in samples))


def _trained(
    filters_BJMD: Tensor, samples: Samples, module: FullBatchTraining, steps: int, *, scale: float = 1.0
) -> TwoLayerCNN:
    model = TwoLayerCNN(filters_BJMD.clone())
    solver = module.solver(model, samples, scale=scale)
    solver.advance(steps)
    solver.write()
    return model


def _test_accuracy(
    samples: Samples, filters_CJMD: Tensor, module: FullBatchTraining, data: SyntheticTask, replicate: int
) -> Tensor:
    """Of every start, trained on all samples of a replicate: (C,)."""
    num = len(filters_CJMD)
    model = _trained(filters_CJMD, _repeated(samples, num), module, data.settings.steps)
    hits = []
    for points in data.test_dataloader():
        own = type(points)(*(t[replicate].expand(num, *t.shape[1:]) if t.dim() else t for t in points))
        hits.append(is_right(margins(model, own)))
    return torch.cat(hits, dim=1).double().mean(dim=1)


def score(margins_CN: Tensor) -> Tensor:
    """A softened hit on each sample: (C, N)."""
    scale_C1 = _SOFTNESS * margins_CN.std(dim=1, keepdim=True).clamp(min=torch.finfo(margins_CN.dtype).tiny)
    soft_CN: Tensor = torch.special.ndtr(margins_CN / scale_C1).nan_to_num(
        0
    )  # a training that diverged is always wrong
    return soft_CN
