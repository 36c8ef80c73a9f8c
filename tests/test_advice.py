"""Advice without trainings: scores against slower ways, the policy and the schedule against made outcomes."""

import itertools
import json
import math
from math import nan

import numpy as np
import pytest
import timm
import torch
from scipy import optimize, stats

from paramtransfer.advice.features import features_of
from paramtransfer.advice.first_look import Cheap, probably_seen, promising_first
from paramtransfer.advice.knn import knn_accuracy
from paramtransfer.advice.logme import log_evidence, logme
from paramtransfer.advice.policy import FRESH, Belief, Pair, Thresholds, believe, decide
from paramtransfer.advice.search import Limits, Trained, needed_epochs, rungs, search
from paramtransfer.advice.settings import Question
from paramtransfer.advice.verdict import Advice, Row, Spent
from paramtransfer.statistics import Estimate

LIMITS = Thresholds(risk=0.05, worth=0.01)


def test_nearest_neighbours_by_hand() -> None:
    """Lengths do not count; the image itself does not; of two classes with one neighbour each the nearer one counts."""
    angles = torch.tensor([0.0, 10.0, 25.0, 90.0, 100.0])
    lengths = torch.tensor([1.0, 9.0, 0.1, 2.0, 3.0])[:, None]
    features = lengths * torch.stack([angles.deg2rad().cos(), angles.deg2rad().sin()], dim=1)
    labels = torch.tensor([0, 0, 1, 1, 1])
    assert knn_accuracy(features, labels, neighbours=1) == pytest.approx(4 / 5)  # 25 degrees: the nearest is at 10
    # Two each: 0 -> 10, 25: the nearer is right; 10 -> 0, 25: right; 25 -> 10, 0: wrong; 90 -> 100, 25; 100 -> 90, 25.
    assert knn_accuracy(features, labels, neighbours=2) == pytest.approx(4 / 5)
    # All others: one of 0 and three of 1 stand before each 0, two of each before a 1, where the nearer ones count.
    assert knn_accuracy(features, labels, neighbours=4) == pytest.approx(2 / 5)
    with pytest.raises(ValueError, match="must be two or more"):
        knn_accuracy(features[:1], labels[:1])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_features_are_what_a_head_is_given(name: str) -> None:
    """As timm itself gives them before its classifier; of a network without one, what it puts out."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=7)
    size = 160 if name == "test_vit" else 64
    images = torch.randn(4, 3, size, size)
    batches = [(images[:2], torch.tensor([0, 1])), (images[2:], torch.tensor([1, 0]))]
    features, labels = features_of(network, batches)
    assert labels.tolist() == [0, 1, 1, 0]
    assert network.training
    network.eval()
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
    torch.testing.assert_close(features, expected)
    network.reset_classifier(0)
    torch.testing.assert_close(features_of(network, batches)[0], expected)


def direct_evidence(features: np.ndarray, target: np.ndarray, alpha: float, beta: float) -> float:
    """The log density of the target under N(0, 1/beta + features features' / alpha), per image."""
    covariance = np.eye(len(target)) / beta + features @ features.T / alpha
    return float(stats.multivariate_normal.logpdf(target, cov=covariance)) / len(target)


@pytest.mark.parametrize(("num", "dim"), [(30, 4), (12, 20)])
def test_evidence_is_the_largest_on_a_fine_grid(num: int, dim: int) -> None:
    """By plain linear algebra over the precisions of weights and noise, with fewer features than images or more."""
    rng = np.random.default_rng(num)
    features = rng.normal(size=(num, dim))
    target = (features[:, 0] + rng.normal(size=num) > 0).astype(float)
    tensors = torch.from_numpy(features), torch.from_numpy(target)
    grid = itertools.product(np.linspace(-4, 6, 21), repeat=2)
    best = max(grid, key=lambda logs: direct_evidence(features, target, *np.exp(logs)))
    found = optimize.minimize(
        lambda logs: -direct_evidence(features, target, *np.exp(logs)),
        best,
        method="Nelder-Mead",
        options={"xatol": 1e-6},
    )
    assert log_evidence(*tensors) == pytest.approx(-found.fun, abs=1e-4)
    labels = tensors[1].long()
    expected = (log_evidence(tensors[0], labels == 0) + log_evidence(tensors[0], labels == 1)) / 2
    assert logme(tensors[0], labels) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e5, 1e7, 1e15])
def test_evidence_is_that_of_features_of_any_scale(scale: float) -> None:
    """As linear algebra has it: the precision of the weights takes the scale up."""
    rng = np.random.default_rng(1)
    features = torch.from_numpy(rng.normal(size=(40, 6)))
    target = features[:, 0] + torch.from_numpy(rng.normal(size=40)) > 0
    assert log_evidence(scale * features, target) == pytest.approx(log_evidence(features, target), rel=1e-9)
    assert log_evidence((scale * features).float(), target) == pytest.approx(log_evidence(features, target), rel=1e-5)


def test_features_of_zeros_say_that_labels_are_noise() -> None:
    """The likeliest normal distribution about 0; worth less than features that tell anything."""
    labels = torch.tensor([0, 0, 0, 1])
    expected = [
        stats.norm(scale=math.sqrt(share)).logpdf(labels == label).mean() for label, share in ((0, 3 / 4), (1, 1 / 4))
    ]
    zeros = logme(torch.zeros(4, 2), labels)
    assert zeros == pytest.approx(sum(expected) / 2)
    telling = logme(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.0], [0.0, 1.0]]), labels)
    scores = {"dead": Cheap(0.5, zeros, 4), "telling": Cheap(0.5, telling, 4)}
    assert promising_first(scores) == ["telling", "dead"]


def test_order_and_suspicion() -> None:
    """Ranks in both scores add up; suspicious is who has half of the next one's errors, beyond chance."""
    scores = {"a": Cheap(0.6, -0.5, 400), "b": Cheap(0.7, -0.4, 400), "c": Cheap(0.65, -0.7, 400)}
    assert promising_first(scores) == ["b", "c", "a"]
    assert not probably_seen(scores)
    assert probably_seen(scores | {"d": Cheap(0.9, -0.9, 400)}) == ["d"]
    assert not probably_seen(scores | {"d": Cheap(0.84, 0.0, 400)})  # more than half of the errors
    assert not probably_seen(
        {name: score._replace(num_images=20) for name, score in scores.items()} | {"d": Cheap(0.86, 0, 20)}
    )
    assert not probably_seen({"d": Cheap(0.99, 0.0, 400)})


def test_beliefs_by_hand() -> None:
    """Pooled variance over candidates, shrunk towards a prior of mean 0."""
    pairs = {"a": [Pair(0.10, 1000), Pair(0.20, 1000)], "b": [Pair(0.00, 1000), Pair(0.02, 1000)], "c": []}
    beliefs = believe(pairs, prior=0.05)
    of_mean = (0.005 + 0.0002) / 2 / 2
    kept = 0.05**2 / (0.05**2 + of_mean)
    assert beliefs["a"] == pytest.approx((kept * 0.15, math.sqrt(kept * of_mean), 2, 2))
    assert beliefs["b"].mean == pytest.approx(kept * 0.01)
    assert set(beliefs) == {"a", "b"}
    t = (0 - beliefs["a"].mean) / beliefs["a"].sem
    assert beliefs["a"].below(0) == pytest.approx(stats.t(2).cdf(t))
    equal = believe({"a": [Pair(0.1, 50), Pair(0.1, 50)]}, prior=10.0)["a"]
    assert equal.sem == pytest.approx(math.sqrt((0.1 - 0.01) / 50 / 2), rel=1e-3)  # no two seeds make it exact


@pytest.mark.parametrize(
    ("beliefs", "verdict", "leading", "tied"),
    [
        ({"a": Belief(0.10, 0.01, 8, 3), "b": Belief(0.02, 0.01, 8, 3)}, "inherit", "a", []),
        ({"a": Belief(0.10, 0.01, 8, 3), "b": Belief(0.095, 0.01, 8, 3)}, "inherit", "a", ["b"]),
        ({"a": Belief(0.02, 0.01, 8, 3)}, "inherit", "a", []),
        ({"a": Belief(0.02, 0.01, 8, 3), "b": Belief(-0.1, 0.01, 8, 3)}, "unclear", "a", []),  # chosen among two
        ({"a": Belief(0.01, 0.01, 8, 3)}, "unclear", "a", [FRESH]),
        ({"a": Belief(0.10, 0.01, 8, 1)}, "unclear", "a", []),
        ({"a": Belief(-0.05, 0.01, 8, 3), "b": Belief(-0.01, 0.005, 8, 3)}, "fresh", FRESH, []),
        ({"a": Belief(-0.05, 0.01, 8, 3), "b": Belief(-0.01, 0.005, 8, 1)}, "unclear", FRESH, []),
        ({"a": Belief(-0.01, 0.05, 8, 3)}, "unclear", FRESH, ["a"]),
        ({}, "unclear", FRESH, [FRESH]),
    ],
)
def test_decisions(beliefs: dict[str, Belief], verdict: str, leading: str, tied: list[str]) -> None:
    decision = decide(beliefs, LIMITS)
    assert (decision.verdict, decision.leading, list(decision.tied)) == (verdict, leading, tied)


def test_nothing_to_gain_is_seldom_told_to_inherit() -> None:
    """Candidates without a gain, differences of 3 points between seeds: in at most 5 % of 2,000 searches."""
    rng = np.random.default_rng(0)
    for num_seeds in (2, 3, 5):
        verdicts = []
        for _ in range(2000):
            fresh = rng.normal(0, 0.02, num_seeds)
            gains = {name: rng.normal(0, 0.02, num_seeds) - fresh for name in "ab"}
            pairs = {name: [Pair(float(gain), 2000) for gain in found] for name, found in gains.items()}
            verdicts.append(decide(believe(pairs, prior=0.05), LIMITS).verdict)
        assert verdicts.count("inherit") <= 100


def test_rungs() -> None:
    """Half of the candidates stay, with twice the epochs, until two are left."""
    assert list(rungs(2, 20)) == []
    assert list(rungs(3, 20)) == [(10, 2)]
    assert list(rungs(9, 20)) == [(3, 5), (5, 3), (10, 2)]
    assert list(rungs(9, 2)) == [(1, 5), (1, 3), (1, 2)]
    assert needed_epochs(9, 20) == 3 * 10 + 5 * 6 + 10 * 4 + 2 * 20 * 3


class Made:
    """Trainings that take a second an epoch, whose accuracy is the candidate's own plus a little of the seed."""

    def __init__(self, **gains: float) -> None:
        self.gains = {FRESH: 0.0, **gains}
        self.asked: list[tuple[str, int, int]] = []

    def __call__(self, name: str, epochs: int, seed: int) -> Trained:
        self.asked.append((name, epochs, seed))
        return Trained(accuracy=0.5 + self.gains[name] + 0.001 * (seed % 7), num_images=100, seconds=float(epochs))


def test_search_spends_its_time() -> None:
    """All rungs, then as many seeds as there is time for; nothing twice, each candidate beside a fresh start."""
    made = Made(a=0.0, b=0.1, c=-0.1, d=0.05)
    done = search(list("abcd"), made, Limits(seconds=300, epochs=20, seeds=5, first_seed=7))
    assert done.finalists == ["b", "d"]
    left = "left after 10 of 20 epochs"
    assert done.states == {"a": left, "c": left, "b": "finalist", "d": "finalist"}
    assert len(set(made.asked)) == len(made.asked)
    assert [asked for asked in made.asked if asked[1] == 20 and asked[0] == "b"] == [("b", 20, 7 + n) for n in range(4)]
    assert 300 - 20 < done.seconds <= 300  # one more training would be too much
    assert [pair.gain for pair in done.whole_pairs("b").values()] == pytest.approx([0.1] * 4)
    seeds = {(epochs, seed) for _, epochs, seed in made.asked}
    assert len({seed for _, seed in seeds}) == len(seeds)  # no rung has the seed of another


@pytest.mark.parametrize("epochs", [1, 2])
def test_rungs_of_one_length_choose_by_their_own_seed(epochs: int) -> None:
    """With few epochs several rungs train for one: what only the first's seed favours is left at the second.

    Nobody gains anything with the seeds of the verdict, and the luck of the rungs is no part of it.
    """
    luck = {7 + 1000: {"a": 0.3, "b": 0.2, "c": 0.1}, 7 + 1001: {"b": 0.3, "c": 0.2}}

    def made(name: str, length: int, seed: int) -> Trained:
        return Trained(accuracy=0.5 + luck.get(seed, {}).get(name, 0.0), num_images=100, seconds=float(length))

    done = search(list("abcde"), made, Limits(seconds=1000, epochs=epochs, seeds=3, first_seed=7))
    assert done.finalists == ["b", "c"]
    for name in done.finalists:
        assert {seed: pair.gain for seed, pair in done.whole_pairs(name).items()} == {7: 0.0, 8: 0.0, 9: 0.0}
    many = Limits(seconds=60, epochs=epochs, seeds=2000, first_seed=7)
    done = search(list("abcde"), made, many)
    assert all(set(done.whole_pairs(name)) <= set(range(7, 1000)) for name in done.finalists)


def test_search_with_little_time() -> None:
    """The least promising are not tried; with hardly any time one pair is trained, and nobody calls that a verdict."""
    done = search(list("abcd"), Made(a=0.0, b=0.1, c=0.2, d=0.3), Limits(seconds=125, epochs=20, seeds=5, first_seed=0))
    assert {name for name, state in done.states.items() if state.startswith("not trained")} == {"c", "d"}
    done = search(list("abcd"), Made(a=0.3, b=0.1, c=0, d=0), Limits(seconds=45, epochs=20, seeds=5, first_seed=0))
    assert done.seconds == 40
    assert len(done.whole_pairs("a")) == 1
    beliefs = believe({name: list(done.whole_pairs(name).values()) for name in done.finalists}, prior=0.05)
    assert decide(beliefs, LIMITS).verdict == "unclear"


def test_words_and_plain_values() -> None:
    """Each verdict names what it rests on; what is not known is null in JSON, and who was not tried is named."""
    limits = {"minutes": 30, "seeds": 5, "risk": 0.05, "worth": 0.01, "prior": 0.05}
    rules = {"all": {"transfer": "filters", "alpha": 1}}
    question = Question(sources=["mine.pt", "other.pt"], rules=rules, **limits)
    rows = [
        Row("mine.pt all", 0.9, -0.1, 20, 0.1, 0.01, 3, 80, "finalist"),
        Row("other.pt all", 0.5, -0.5, 0, nan, nan, 0, 80, ""),
    ]
    made = {
        "inherit": {"mine.pt all": Belief(0.10, 0.01, 8, 3)},
        "fresh": {"mine.pt all": Belief(-0.05, 0.01, 8, 3)},
        "unclear": {"mine.pt all": Belief(0.01, 0.01, 8, 3)},
    }
    begins = {"inherit": "Inherit, from mine.pt all.", "fresh": "Do not inherit: ", "unclear": "Cannot tell within"}
    for verdict, beliefs in made.items():
        advice = Advice(
            question=question,
            decision=decide(beliefs, LIMITS),
            rows=rows,
            settings=rules["all"],
            on_test=Estimate(0.08, 0.02),
            num_test=3,
            num_diverged=1,
            seen=["mine.pt"],
            spent=Spent(seconds=90, trainings=7, reused=2),
        )
        first, *others = advice.sentences()
        assert first.startswith(begins[verdict])
        text = " ".join(others)
        assert "+0.0800 ± 0.0200 (n = 3 seeds)" in text
        assert "Of its 4 whole trainings 1 diverged: " in text
        assert "mine.pt has probably seen the target's classes" in text
        assert "Not tried, for lack of time: other.pt all." in text
        assert "Spent: 1.5 of 30 minutes, 7 trainings, 2 of them reused." in text
        assert ("only 80 validation images for each seed, each of which is 0.013 of" in text) == (verdict == "unclear")
        assert ("Not told apart from mine.pt all: the fresh start." in text) == (verdict == "unclear")
        assert advice.start == ("mine.pt all" if verdict == "inherit" else FRESH)
        plain = json.loads(json.dumps(advice.as_dict(), allow_nan=False))
        assert plain["verdict"] == verdict
        assert plain["candidates"][1]["gain"] is None
