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
        # Sums in double: added to the float32 sum of a large cluster, a weight would lose most of its digits.
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
    # Between two midpoints is what is nearest to one centroid: a search of log2(count) steps, without an (n, count)
    # matrix of distances. The order holds in every round, since clusters are intervals.
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
    # One value is kept for the pruned weights. More centroids than distinct weights would stay empty.
    count = min(2**bits - has_zeros, distinct)
    if not count:
        return flat.new_zeros(1), index.view(weight.shape), True
    codebook, index[alive] = kmeans(flat[alive], count)
    if has_zeros:
        codebook = torch.cat([codebook.new_zeros(1), codebook])
        index[alive] += 1
    return codebook, index.view(weight.shape), has_zeros
