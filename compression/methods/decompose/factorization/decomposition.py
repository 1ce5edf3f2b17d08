"""What all decompositions share: which layers, at what ranks, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.decompose.factorization import report
from compression.methods.decompose.factorization.candidate import Candidate, Ranks
from compression.methods.decompose.factorization.costs import Cost, Part, Places, cost, footprint, nearest
from compression.methods.decompose.factorization.spectrum import Spectrum, rounded
from compression.nn import layers
from compression.nn.inputs import map_inputs
from compression.params import param
from compression.training.context import Context

TARGETS = ("macs", "params")
TOLERANCE = 0.02  # of the whole model: a target missed by more is said loudly


@dataclass(frozen=True)
class Decomposition(Method):
    """How ranks are chosen, and which layers stay as they are."""

    family: ClassVar[str] = "decompose"
    kinds: ClassVar[str]  # what the method takes, in words
    needs_finetune: ClassVar[bool] = True

    rank: str = param(
        "evbmf",
        "what chooses ranks: what stands out of noise, energy, ratio, or a target of the whole model's macs or params",
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
        "share of the whole model's macs or params to be left",
        interval="(0, 1)",
        search=(0.2, 0.9),
        when={"rank": TARGETS},
    )
    round_to: int = param(8, "ranks are rounded up to a multiple of it: 8 runs fast", interval="[1, inf)")
    skip: tuple[str, ...] = param((), "layers to leave as they are: names, or beginnings of names, with / between them")

    def takes(self, layer: nn.Module) -> bool:
        """Whether the method is made for this layer."""
        raise NotImplementedError

    def unfoldings(self, layer: nn.Module) -> list[Tensor]:
        """The matrices of the weight whose ranks are chosen."""
        raise NotImplementedError

    def full(self, layer: nn.Module) -> Ranks:
        """The ranks that `ratio` is a share of."""
        raise NotImplementedError

    def parts(self, layer: nn.Module, places: Places, ranks: Ranks) -> list[Part]:
        """What the layers cost that take this one's place."""
        raise NotImplementedError

    def factorised(self, layer: nn.Module, ranks: Ranks, seed: int) -> tuple[nn.Sequential, float, str]:
        """The layers that take this one's place, ||W - W'|| / ||W||, and what is to be said against them."""
        raise NotImplementedError

    def joined(self, ranks: Ranks) -> Ranks:
        """The ranks of the factors from those of the unfoldings."""
        return ranks

    def at(self, found: Candidate, share: float) -> Ranks:
        """The ranks that a search tries: the larger `share` in [0, 1], the more is kept."""
        return self.joined(tuple(spectrum.holding(share) for spectrum in found.spectra))

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        model = model.to(context.device).eval()
        example = map_inputs(lambda tensor: tensor.to(context.device), context.task.example())
        taken = self.taken(model)
        places, macs = footprint(model, taken, example)
        before = Cost(layers.count_parameters(model), macs)
        found = [self.candidate(name, taken[name], where) for name, where in places.items()]
        chosen = self.chosen(found, before)
        for sentence in report.doubts(model, found, chosen, self.rank):
            context.record.warn(sentence)
        errors = {one.name: self.replaced(model, one, chosen[one.name], context) for one in found if one.name in chosen}
        after = Cost(layers.count_parameters(model), footprint(model, {}, example)[1])
        rows = [self.row(one, chosen.get(one.name), errors.get(one.name, 0.0)) for one in found]
        context.record.table("decomposition", [*rows, report.whole(rows[0], before, after)])
        report.draw(found, chosen, errors, context)
        self.judge(before, after, context)
        return model

    def taken(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers to look at, by name; UserError if there are none, or `skip` names none."""
        found = {name: layer for name, layer in model.named_modules() if self.takes(layer)}
        for wanted in self.skip:
            names = [name for name in found if name == wanted or name.startswith(f"{wanted}.")]
            if not names:
                raise UserError(f"skip={wanted!r} is no layer to decompose; those are {', '.join(found) or 'none'}.")
            found = {name: layer for name, layer in found.items() if name not in names}
        if not found:
            raise UserError(f"There is nothing to decompose: the model has no {self.kinds} that is not skipped.")
        return found

    def candidate(self, name: str, layer: nn.Module, places: Places) -> Candidate:
        spectra = tuple(Spectrum.of(matrix) for matrix in self.unfoldings(layer))
        return Candidate(name, layer, places, spectra, self.full(layer))

    def ranks(self, found: Candidate, share: float) -> Ranks:
        """The ranks of one layer; `share` is what the search of a target turns."""
        if self.rank == "evbmf":
            wanted = self.joined(tuple(spectrum.above_noise for spectrum in found.spectra))
        elif self.rank == "energy":
            wanted = self.joined(tuple(spectrum.holding(self.energy) for spectrum in found.spectra))
        elif self.rank == "ratio":
            wanted = tuple(math.ceil(self.ratio * full) for full in found.full)
        else:
            wanted = self.at(found, share)
        return tuple(rounded(rank, full, self.round_to) for rank, full in zip(wanted, found.full, strict=True))

    def chosen(self, found: Sequence[Candidate], whole: Cost) -> dict[str, Ranks]:
        """The ranks of the layers that get smaller; UserError for a target that no ranks reach."""
        if self.rank not in TARGETS:
            return self.smaller(found, 1.0)

        def left(share: float) -> float:
            saved = self.saved(found, self.smaller(found, share))
            return 1 - getattr(saved, self.rank) / getattr(whole, self.rank)

        if (least := left(0.0)) > self.target + TOLERANCE:
            raise UserError(
                f"target={self.target:g} of the {self.rank} cannot be reached: {least:.3f} stay at the lowest ranks "
                f"of round_to={self.round_to}; take a larger target{' or a smaller round_to' * (self.round_to > 1)}."
            )
        return self.smaller(found, nearest(left, self.target))

    def smaller(self, found: Sequence[Candidate], share: float) -> dict[str, Ranks]:
        """The ranks of the layers that do not grow by them."""
        ranks = {one.name: self.ranks(one, share) for one in found}
        return {one.name: ranks[one.name] for one in found if self.shrinks(one, ranks[one.name])}

    def shrinks(self, found: Candidate, ranks: Ranks) -> bool:
        """Whether a layer gets smaller in what the target counts; without a target, in both, if it has both."""
        now, then = cost(self.parts(found.layer, found.places, ranks)), found.before
        fewer, cheaper = now.params < then.params, now.macs < then.macs
        if self.rank in TARGETS:
            return fewer if self.rank == "params" else cheaper
        return fewer and (cheaper or not then.macs)

    def saved(self, found: Sequence[Candidate], chosen: dict[str, Ranks]) -> Cost:
        """What is gone of the whole model."""
        replaced = [one for one in found if one.name in chosen]
        now = (cost(self.parts(one.layer, one.places, chosen[one.name])) for one in replaced)
        return sum((one.before for one in replaced), Cost()) - sum(now, Cost())

    def replaced(self, model: nn.Module, found: Candidate, ranks: Ranks, context: Context) -> float:
        """Put the factors in a layer's place; the relative error of its weight."""
        weight = layers.weight(found.layer)
        made, error, doubt = self.factorised(found.layer, ranks, context.seed)
        model.set_submodule(found.name, made.to(weight.device, weight.dtype))
        if doubt:
            context.record.warn(f"{found.name}: {doubt}")
        return error

    def row(self, found: Candidate, ranks: Ranks | None, error: float) -> dict[str, Any]:
        """The layer's row of the table; without ranks it stayed."""
        now = cost(self.parts(found.layer, found.places, ranks)) if ranks else found.before
        return {
            "layer": found.name,
            "shape": "x".join(map(str, layers.weight(found.layer).shape)),
            "rank": "x".join(map(str, ranks)) if ranks else "as it was",
            "full rank": "x".join(map(str, found.full)),
            "error": error,
            **report.costs("before", found.before),
            **report.costs("after", now),
        }

    def judge(self, before: Cost, after: Cost, context: Context) -> None:
        """Say by how much a target was missed."""
        if self.rank not in TARGETS:
            return
        left = getattr(after, self.rank) / getattr(before, self.rank)
        if abs(left - self.target) > TOLERANCE:
            context.record.warn(
                f"{left:.1%} of the {self.rank} are left instead of {self.target:.1%}: ranks are multiples of "
                f"round_to={self.round_to}."
            )
