"""Relational distillation: examples lie to one another as they do for the teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.distill.layers.features import Pairs
from compression.methods.distill.layers.layered import Comparison, Layered, Outputs
from compression.params import param
from compression.training.context import Context

RELATED = 128  # examples of a batch that are related at most: there are as many angles as their third power


@dataclass(frozen=True)
class Relational(Layered):
    """Train the student on the distances between examples and the angles of any three, beside the teacher's answers.
    Park et al. 2019, arXiv:1904.05068.

    An example is the mean over the places of an image, or the first token of a text, in the last pair of layers,
    or in all that are named.
    """

    distance: float = param(25.0, "weight of the distances", interval="[0, inf)", search=(1.0, 100.0), log=True)
    angle: float = param(50.0, "weight of the angles", interval="[0, inf)", search=(1.0, 200.0), log=True)

    def comparison(self, teacher: nn.Module, student: nn.Module, context: Context) -> Comparison:
        pairs = self.layers_to_compare(teacher, student)
        return Relations(pairs if self.pairs else pairs[-1:], self.distance, self.angle)


class Relations(Comparison):
    def __init__(self, pairs: Pairs, distance: float, angle: float) -> None:
        super().__init__(pairs)
        self.distance, self.angle = distance, angle

    def forward(self, known: Outputs, seen: Outputs, tokens: Tensor | None) -> Tensor:
        losses = [self.apart(embedding(seen[student]), embedding(known[teacher])) for teacher, student in self.pairs]
        return torch.stack(losses).sum()

    def apart(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.distance * distance_loss(student, teacher) + self.angle * angle_loss(student, teacher)


def embedding(output: Tensor) -> Tensor:
    """One vector for each example, `(batch, features)`."""
    output = output[:RELATED]
    if output.ndim == 4:
        return output.mean((2, 3))
    return output[:, 0] if output.ndim == 3 else output


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss of the pairwise distances, each in units of their mean; Park et al. 2019, eq. 4 to 6.

    Vectors `(batch, features)`; the two widths need not be the same.
    """
    return F.smooth_l1_loss(distances(student), distances(teacher))


def distances(vectors: Tensor) -> Tensor:
    """`(batch, batch)`, divided by the mean of those that are not zero."""
    found = torch.cdist(vectors.float(), vectors.float(), compute_mode="donot_use_mm_for_euclid_dist")
    apart = found[found > 0]
    return found / apart.mean() if len(apart) else found


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss of the cosines of the angles at each example between any two others; Park et al. 2019, eq. 7, 8."""
    return F.smooth_l1_loss(cosines(student), cosines(teacher))


def cosines(vectors: Tensor) -> Tensor:
    """`(batch, batch, batch)`: at [j, i, k] the cosine of the angle at j between i and k."""
    sides = F.normalize(vectors.float().unsqueeze(0) - vectors.float().unsqueeze(1), dim=2)
    return sides @ sides.transpose(1, 2)
