"""Quality figures from logits `(n, outputs)` and targets `(n,)`, and the losses that go with them.

The figures of GLUE are those of Wang et al. 2019, arXiv:1804.07461, table 1.
"""

from __future__ import annotations

import torch
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The mean over the batch, for classes."""
    return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def squared_error(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The mean over the batch, for one number per example; there are no labels to smooth."""
    return functional.mse_loss(logits.squeeze(1), targets)


def accuracy(logits: Tensor, targets: Tensor) -> dict[str, float]:
    return {"accuracy": (logits.argmax(1) == targets).float().mean().item()}


def f1(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """F1 of class 1, and accuracy beside it (MRPC, QQP)."""
    score = f1_score(targets.cpu(), logits.argmax(1).cpu(), zero_division=0.0)
    return {"f1": float(score), **accuracy(logits, targets)}


def matthews_correlation(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """In [-1, 1]; 0 where one class alone is predicted (CoLA)."""
    return {"matthews_correlation": float(matthews_corrcoef(targets.cpu(), logits.argmax(1).cpu()))}


def correlations(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Pearson's and Spearman's, in [-1, 1]; 0 where every prediction is the same, like Matthews's (STS-B)."""
    predicted, wanted = logits.squeeze(1).float().cpu(), targets.float().cpu()
    if torch.all(predicted == predicted[0]) or torch.all(wanted == wanted[0]):
        return {"pearson": 0.0, "spearman": 0.0}
    pearson, spearman = stats.pearsonr(predicted, wanted), stats.spearmanr(predicted, wanted)
    return {"pearson": float(pearson.statistic), "spearman": float(spearman.statistic)}
