"""LogME: how likely labels are under Bayesian linear models of features (You et al. 2021, arXiv 2102.11005).

Shape letters: N images, D features, R singular values.
"""

import math

import torch
from torch import Tensor

_STEPS = 200
_CLOSE = 1e-6
_SMALLEST = 1e-10  # of residuals, weights and α, so that labels that are fitted exactly or not at all have finite ones


def log_evidence(features_ND: Tensor, target_N: Tensor) -> float:
    """The largest log evidence of a linear model, per image (equation 2 there).

    The target is features · w + noise, w ~ N(0, 1/α), noise ~ N(0, 1/β); α and β are found by fixed-point iteration
    (Algorithm 1 there), in the coordinates of the features' singular vectors, where a step costs R. Features are
    brought to a mean square of 1 first: the evidence is a density of the target, and α takes up any scale, so that its
    maximum stays what it is, without a constant; only the iteration begins nearer to it. Of zeros it is that of noise.
    """
    num, dim = features_ND.shape
    scaled_ND = features_ND.double()
    scaled_ND = scaled_ND / scaled_ND.square().mean().sqrt().clamp_min(torch.finfo(torch.double).tiny)
    left_NR, singular_R, _ = torch.linalg.svd(scaled_ND, full_matrices=False)
    square_R = singular_R**2
    along_R = left_NR.T @ target_N.double()
    beyond = max(float(target_N.double().square().sum() - along_R.square().sum()), 0.0)
    alpha = beta = 1.0
    for _ in range(_STEPS):
        precision_R = alpha + beta * square_R
        weight = max(float((beta**2 * square_R * along_R**2 / precision_R**2).sum()), _SMALLEST)
        residual = max(float(((alpha * along_R / precision_R) ** 2).sum()) + beyond, _SMALLEST)
        effective = float((beta * square_R / precision_R).sum())
        before, alpha, beta = (alpha, beta), max(effective / weight, _SMALLEST), (num - effective) / residual
        if all(abs(new - old) <= _CLOSE * old for new, old in zip((alpha, beta), before, strict=True)):
            break
    precision_R = alpha + beta * square_R
    weight = float((beta**2 * square_R * along_R**2 / precision_R**2).sum())
    residual = float(((alpha * along_R / precision_R) ** 2).sum()) + beyond
    rank = len(square_R)
    determinant = float(precision_R.log().sum()) + (dim - rank) * math.log(alpha)
    evidence = dim * math.log(alpha) + num * math.log(beta / (2 * math.pi)) - determinant
    return (evidence - beta * residual - alpha * weight) / (2 * num)


def logme(features_ND: Tensor, labels_N: Tensor) -> float:
    """The mean over classes of the largest log evidence per image of belonging to the class (1) or not (0)."""
    classes = sorted(set(labels_N.tolist()))
    return sum(log_evidence(features_ND, labels_N == label) for label in classes) / len(classes)
