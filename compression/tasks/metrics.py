"""Quality metrics from logits `(n, outputs)` and targets `(n,)`, and the loss functions that go with them.

The metrics of GLUE are those of Wang et al. 2019, arXiv:1804.07461, table 1.
"""

from __future__ import annotations

import torch
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy over the batch, for targets that are classes."""
    return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def squared_error(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:  # noqa: ARG001
    """Return the mean squared error over the batch, for regression.

    Takes `label_smoothing` as every task's loss does; it has no effect without classes.
    """
    return functional.mse_loss(logits.squeeze(1), targets)


def next_token_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy over the tokens that have a target, in nats.

    `logits` `(…, tokens)` and `targets` `(…)`, of any leading shape; targets of IGNORED count for nothing.
    """
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), label_smoothing=label_smoothing)


def perplexity(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the perplexity, the exponential of the mean cross-entropy of the tokens, for logits `(n, tokens)`."""
    return {"perplexity": cross_entropy(logits.double(), targets).exp().item()}


def accuracy(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the share of correct predictions, in [0, 1]."""
    return {"accuracy": (logits.argmax(1) == targets).float().mean().item()}


def f1(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the F1 score of class 1, and the accuracy (MRPC, QQP)."""
    score = f1_score(targets.cpu(), logits.argmax(1).cpu(), zero_division=0.0)
    return {"f1": float(score), **accuracy(logits, targets)}


def matthews_correlation(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return Matthews's correlation coefficient, in [-1, 1]; 0 if only one class is predicted (CoLA)."""
    return {"matthews_correlation": float(matthews_corrcoef(targets.cpu(), logits.argmax(1).cpu()))}


def correlations(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return Pearson's and Spearman's correlation coefficients, in [-1, 1] (STS-B).

    Both are 0 if all predictions or all targets are equal, as Matthews's coefficient is.
    """
    predictions, targets = logits.squeeze(1).float().cpu(), targets.float().cpu()
    if torch.all(predictions == predictions[0]) or torch.all(targets == targets[0]):
        return {"pearson": 0.0, "spearman": 0.0}
    pearson, spearman = stats.pearsonr(predictions, targets), stats.spearmanr(predictions, targets)
    return {"pearson": float(pearson.statistic), "spearman": float(spearman.statistic)}
