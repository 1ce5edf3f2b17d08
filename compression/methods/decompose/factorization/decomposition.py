"""The base of all decompositions: which layers are replaced, at which ranks, and what the run records of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.decompose.factorization import report
from compression.methods.decompose.factorization.candidate import Candidate, Ranks
from compression.methods.decompose.factorization.costs import (
    Cost,
    FactorSize,
    FeatureMapSizes,
    bisect_share,
    profile_layers,
    total_cost,
)
from compression.methods.decompose.factorization.spectrum import Spectrum, round_rank
from compression.nn import layers
from compression.nn.graph import record_graph, replace_module
from compression.nn.inputs import Inputs, map_inputs
from compression.nn.selection import resolve_names
from compression.params import param

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from compression.methods.decompose.factorization.factors import Factorization
    from compression.training.context import Context

TARGETS = ("macs", "params")
TOLERANCE = 0.02  # of the whole model: a target missed by more is refused, or warned of


@dataclass(frozen=True)
class Decomposition(Method):
    """Replace layers by their factors, at ranks that EVBMF, energy, a ratio or a target of the whole model chooses."""

    family: ClassVar[str] = "decompose"
    kinds: ClassVar[str]  # the layers it can decompose, in words
    needs_finetune: ClassVar[bool] = True

    rank: str = param(
        "evbmf",
        "how to choose ranks: by EVBMF (singular values above the noise), energy, ratio, or a target for the whole "
        "model's macs or params",
        choices=("evbmf", "energy", "ratio", *TARGETS),
        search=("evbmf", "energy", "ratio"),
    )
    energy: float = param(
        0.9,
        "share of the squared singular values to keep",
        interval="(0, 1]",
        search=(0.5, 0.99),
        when={"rank": ("energy",)},
    )
    ratio: float = param(
        0.5, "share of the full rank to keep", interval="(0, 1]", search=(0.1, 0.9), when={"rank": ("ratio",)}
    )
    target: float = param(
        0.5,
        "share of the whole model's macs or params to keep",
        interval="(0, 1)",
        search=(0.2, 0.9),
        when={"rank": TARGETS},
    )
    round_to: int = param(8, "round ranks up to a multiple of this: multiples of 8 run fast", interval="[1, inf)")
    skip: tuple[str, ...] = param((), "layers not to decompose: names, or beginnings of names, with / between them")

    def can_decompose(self, layer: nn.Module) -> bool:
        """Whether the method is made for this layer."""
        raise NotImplementedError

    def unfoldings(self, layer: nn.Module) -> list[Tensor]:
        """The matrices `(rows, columns)` of the weight whose ranks are chosen."""
        raise NotImplementedError

    def full_ranks(self, layer: nn.Module) -> Ranks:
        """The ranks that `ratio` is a share of."""
        raise NotImplementedError

    def factor_sizes(self, layer: nn.Module, sizes: FeatureMapSizes, ranks: Ranks) -> list[FactorSize]:
        """The sizes of the layers that would replace this one, in their order."""
        raise NotImplementedError

    def factorize(self, layer: nn.Module, ranks: Ranks, seed: int) -> Factorization:
        """Fit the layers that replace this one; the same `seed` gives the same factors."""
        raise NotImplementedError

    def combine_ranks(self, ranks: Ranks) -> Ranks:
        """The ranks of the factorization from those of the unfoldings."""
        return ranks

    def ranks_at(self, candidate: Candidate, share: float) -> Ranks:
        """The ranks that the search for a target tries: the larger `share` in [0, 1], the larger they are."""
        return self.combine_ranks(tuple(spectrum.rank_for_energy(share) for spectrum in candidate.spectra))

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Replace, in place, every layer that its factors make smaller."""
        model = model.to(context.device).eval()
        example = map_inputs(lambda tensor: tensor.to(context.device), context.task.example())
        selected = self.select_layers(model, example)
        sizes, macs = profile_layers(model, selected, example)
        if not sizes:
            raise UserError(f"The model never uses {', '.join(selected)}, so there is nothing to decompose.")
        before = Cost(layers.count_parameters(model), macs)
        candidates = [self.candidate(name, selected[name], of_layer) for name, of_layer in sizes.items()]
        chosen = self.choose_ranks(candidates, before)
        for sentence in report.diagnostics(model, candidates, chosen, self.rank):
            context.record.warn(sentence)
        errors = {c.name: self.replace_layer(model, c, chosen[c.name], context) for c in candidates if c.name in chosen}
        after = Cost(layers.count_parameters(model), profile_layers(model, {}, example)[1])
        rows = [self.table_row(c, chosen.get(c.name), errors.get(c.name, 0.0)) for c in candidates]
        context.record.table("decomposition", [*rows, report.whole_model_row(rows[0], before, after)])
        report.log_figures(candidates, chosen, errors, context)
        self.warn_of_missed_target(before, after, context)
        return model

    def select_layers(self, model: nn.Module, example: Inputs) -> dict[str, nn.Module]:
        """The layers to consider, by name; raises UserError if there are none, or `skip` names none of them.

        Layers whose weights functions read, too, on the prepared batch `example`, stay as they are, and so do an
        embedding and an output layer that share their weight: factors of the one would add to the weight of the other.
        """
        tied = {name for pair in layers.tied_layers(model).items() for name in pair}
        taken = record_graph(model, example).read_by_functions | tied
        found = {n: layer for n, layer in model.named_modules() if self.can_decompose(layer) and n not in taken}
        skipped = resolve_names(self.skip, found, "skip", "decomposable layer")
        found = {name: layer for name, layer in found.items() if name not in skipped}
        if not found:
            reason = layers.tied_clause(tied)
            raise UserError(
                f"There is nothing to decompose: the model has no {self.kinds} that is not skipped{reason}."
            )
        return found

    def candidate(self, name: str, layer: nn.Module, sizes: FeatureMapSizes) -> Candidate:
        """Compute the spectra of a layer, from which its ranks are chosen."""
        spectra = tuple(Spectrum.of_matrix(matrix) for matrix in self.unfoldings(layer))
        return Candidate(name, layer, sizes, spectra, self.full_ranks(layer))

    def ranks_of(self, candidate: Candidate, share: float) -> Ranks:
        """The rounded ranks of one layer; `share` is the variable of the search for a target, unused otherwise."""
        if self.rank == "evbmf":
            wanted = self.combine_ranks(tuple(spectrum.evbmf_rank for spectrum in candidate.spectra))
        elif self.rank == "energy":
            wanted = self.combine_ranks(tuple(spectrum.rank_for_energy(self.energy) for spectrum in candidate.spectra))
        elif self.rank == "ratio":
            wanted = tuple(math.ceil(self.ratio * full) for full in candidate.full_ranks)
        else:
            wanted = self.ranks_at(candidate, share)
        pairs = zip(wanted, candidate.full_ranks, strict=True)
        return tuple(round_rank(rank, full, self.round_to) for rank, full in pairs)

    def choose_ranks(self, candidates: Sequence[Candidate], whole: Cost) -> dict[str, Ranks]:
        """The ranks of the layers to replace, `whole` being the model's cost.

        Raises UserError for a target that the lowest ranks miss by more than TOLERANCE.
        """
        if self.rank not in TARGETS:
            return self.shrinking_ranks(candidates, 1.0)

        def remaining(share: float) -> float:
            # By arithmetic alone, since the bisection asks some fifty times: nothing is factorized before the ranks are
            # fixed.
            saved = self.saved_cost(candidates, self.shrinking_ranks(candidates, share))
            return 1 - float(getattr(saved, self.rank) / getattr(whole, self.rank))

        if (least := remaining(0.0)) > self.target + TOLERANCE:
            raise UserError(
                f"target={self.target:g} of the {self.rank} cannot be reached: {least:.3f} stay at the lowest ranks "
                f"of round_to={self.round_to}; take a larger target{' or a smaller round_to' * (self.round_to > 1)}."
            )
        return self.shrinking_ranks(candidates, bisect_share(remaining, self.target))

    def shrinking_ranks(self, candidates: Sequence[Candidate], share: float) -> dict[str, Ranks]:
        """The ranks of those layers that they make smaller, by name."""
        ranks = {c.name: self.ranks_of(c, share) for c in candidates}
        return {c.name: ranks[c.name] for c in candidates if self.is_smaller(c, ranks[c.name])}

    def is_smaller(self, candidate: Candidate, ranks: Ranks) -> bool:
        """Whether the factors cost less in what the target counts; without a target, in params and any macs."""
        before, after = candidate.cost, self.cost_at(candidate, ranks)
        fewer_params, fewer_macs = after.params < before.params, after.macs < before.macs
        if self.rank in TARGETS:
            return fewer_params if self.rank == "params" else fewer_macs
        # An embedding has no MACs to lose: its parameters decide.
        return fewer_params and (fewer_macs or not before.macs)

    def cost_at(self, candidate: Candidate, ranks: Ranks) -> Cost:
        """The cost of the layers that would replace a candidate."""
        return total_cost(self.factor_sizes(candidate.layer, candidate.sizes, ranks))

    def saved_cost(self, candidates: Sequence[Candidate], chosen: dict[str, Ranks]) -> Cost:
        """The cost that replacing the layers in `chosen` saves."""
        saved = (c.cost - self.cost_at(c, chosen[c.name]) for c in candidates if c.name in chosen)
        return sum(saved, Cost())

    def replace_layer(self, model: nn.Module, candidate: Candidate, ranks: Ranks, context: Context) -> float:
        """Replace a layer by its factors, in the device and precision of its weight; returns the relative error."""
        weight = layers.weight(candidate.layer)
        made, error, warning = self.factorize(candidate.layer, ranks, context.seed)
        replace_module(model, candidate.name, made.to(weight.device, weight.dtype))
        if warning:
            context.record.warn(f"{candidate.name}: {warning}")
        return error

    def table_row(self, candidate: Candidate, ranks: Ranks | None, error: float) -> dict[str, Any]:
        """The layer's row of the table `decomposition`; `ranks` is None for a layer that stays."""
        return {
            "layer": candidate.name,
            "shape": "x".join(map(str, layers.weight(candidate.layer).shape)),
            "rank": "x".join(map(str, ranks)) if ranks else "as it was",
            "full rank": "x".join(map(str, candidate.full_ranks)),
            "error": error,
            **report.cost_columns("before", candidate.cost),
            **report.cost_columns("after", self.cost_at(candidate, ranks) if ranks else candidate.cost),
        }

    def warn_of_missed_target(self, before: Cost, after: Cost, context: Context) -> None:
        """Warn where the model's cost is further than TOLERANCE from the target."""
        if self.rank not in TARGETS:
            return
        remaining = getattr(after, self.rank) / getattr(before, self.rank)
        if abs(remaining - self.target) > TOLERANCE:
            context.record.warn(
                f"{remaining:.1%} of the {self.rank} remain instead of {self.target:.1%}: ranks are multiples of "
                f"round_to={self.round_to}."
            )
