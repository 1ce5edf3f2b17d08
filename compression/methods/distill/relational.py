"""Relational distillation: distances and angles between examples are as in the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.distill.layers.layer_distillation import LayerDistillation, LayerLoss, LayerOutputs
from compression.nn import transformer
from compression.params import param

if TYPE_CHECKING:
    from compression.methods.distill.layers.features import LayerPairs
    from compression.training.context import Context

MOST_EXAMPLES = 128  # of a batch that are compared: the number of angles is the third power of it


@dataclass(frozen=True)
class Relational(LayerDistillation):
    """Train the student on the teacher's distances between examples and angles of any three, in addition to its logits.
    Park et al. 2019, arXiv:1904.05068.

    An example is represented by the mean over the pixels of a feature map, by the first token of a text or, in a
    decoder, whose first token has seen no other, by the last one; in the last pair of layers, or in all that are named.
    """

    # 25 and 50 as in the paper
    distance: float = param(25.0, "weight of the distances", interval="[0, inf)", search=(1.0, 100.0), log=True)
    angle: float = param(50.0, "weight of the angles", interval="[0, inf)", search=(1.0, 200.0), log=True)

    def layer_loss(self, teacher: nn.Module, student: nn.Module, context: Context) -> LayerLoss:
        """The weighted losses of distances and angles."""
        pairs = self.compared_layers(teacher, student)
        last = context.task.predicts_tokens or any(transformer.is_decoder(model) for model in (teacher, student))
        return RelationalLoss(pairs if self.pairs else pairs[-1:], self.distance, self.angle, last)


class RelationalLoss(LayerLoss):
    """The sum over the pairs of `distance_loss` and `angle_loss`, with the weights `distance` and `angle`.

    A text is represented by its first token, or its last one if `last`.
    """

    def __init__(self, pairs: LayerPairs, distance: float, angle: float, last: bool = False) -> None:
        super().__init__(pairs)
        self.distance, self.angle, self.last = distance, angle, last

    def forward(self, teacher: LayerOutputs, student: LayerOutputs, mask: Tensor | None) -> Tensor:
        """The weighted sum over the pairs."""
        places = mask.sum(1) - 1 if self.last and mask is not None else None
        losses = []
        for of_teacher, of_student in self.pairs:
            vectors = [example_vectors(output, places) for output in (student[of_student], teacher[of_teacher])]
            losses.append(self.distance * distance_loss(*vectors) + self.angle * angle_loss(*vectors))
        return torch.stack(losses).sum()


def example_vectors(output: Tensor, places: Tensor | None = None) -> Tensor:
    """One vector for each of the first MOST_EXAMPLES of a batch, `(examples, features)`.

    Of a text, that of its token at `places` `(batch,)`, the first if None.
    """
    output = output[:MOST_EXAMPLES]
    if output.ndim == 4:
        return output.mean((2, 3))
    if output.ndim == 3:
        rows = torch.arange(len(output), device=output.device)
        return output[rows, 0 if places is None else places[:MOST_EXAMPLES]]
    return output


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss of the pairwise distances, each in units of their mean; Park et al. 2019, eq. 4 to 6.

    Vectors `(batch, features)`; the two widths need not be the same.
    """
    # at its beta of 1, the paper's Huber loss
    return F.smooth_l1_loss(normalized_distances(student), normalized_distances(teacher))


def normalized_distances(vectors: Tensor) -> Tensor:
    """Pairwise distances `(batch, batch)`, divided by the mean of those that are not zero."""
    # Above 25 rows torch would go by way of a matrix product, which gives equal vectors small distances instead of 0:
    # these would count in the mean.
    distances = torch.cdist(vectors.float(), vectors.float(), compute_mode="donot_use_mm_for_euclid_dist")
    positive = distances[distances > 0]
    return distances / positive.mean() if len(positive) else distances


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss of the cosines of the angles at each example between any two others; Park et al. 2019, eq. 7, 8."""
    return F.smooth_l1_loss(angle_cosines(student), angle_cosines(teacher))


def angle_cosines(vectors: Tensor) -> Tensor:
    """`(batch, batch, batch)`: at [j, i, k] the cosine of the angle at j between i and k."""
    directions = F.normalize(vectors.float().unsqueeze(0) - vectors.float().unsqueeze(1), dim=2)  # [j, i]: from j to i
    return directions @ directions.transpose(1, 2)  # 8 MB for 128 examples
