"""One-dimensional k-means over the weights of a layer.  Han et al. 2016, arXiv:1510.00149, section 3."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_ROUNDS = 100  # in one dimension it converges long before


def kmeans(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Centroids `(count,)`, ascending, and the index of the nearest for each of `values` `(n,)`, int64.

    Starts from centroids spread evenly over the range ("linear initialisation", section 3.2), which keeps the few
    large weights represented. A centroid that nothing is near stays where it is.
    """
    centroids = torch.linspace(values.min().item(), values.max().item(), count, device=values.device)
    index = nearest(values, centroids)
    for _ in range(MAX_ROUNDS):
        members = index.bincount(minlength=count)
        sums = torch.zeros(count, dtype=torch.float64, device=values.device).index_add(0, index, values.double())
        centroids = torch.where(members > 0, (sums / members.clamp_min(1)).to(values.dtype), centroids)
        reassigned = nearest(values, centroids)
        if torch.equal(reassigned, index):
            break
        index = reassigned
    return centroids, index


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest of the ascending `centroids` for each of `values`, int64."""
    return torch.bucketize(values.contiguous(), (centroids[1:] + centroids[:-1]) / 2)


def build_codebook(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, bool]:
    """At most 2^bits values, an index into them in the shape of `weight`, and whether some weights are zero.

    If so, the first value is 0, and only these weights have it: pruned weights stay pruned.
    """
    flat = weight.detach().flatten()
    alive = flat != 0
    has_zeros = not bool(alive.all())
    index = torch.zeros_like(flat, dtype=torch.int64)
    distinct = len(torch.unique(flat[alive]))
    count = min(2**bits - has_zeros, distinct)
    if not count:
        return flat.new_zeros(1), index.view(weight.shape), True
    codebook, index[alive] = kmeans(flat[alive], count)
    if has_zeros:
        codebook = torch.cat([codebook.new_zeros(1), codebook])
        index[alive] += 1
    return codebook, index.view(weight.shape), has_zeros
