"""Running a model over a few training examples to see what its layers are given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compression.methods.quantize.calibration.observers import Observed
from compression.nn.inputs import Inputs, forward
from compression.training.context import Context

BATCH = 32
SAMPLE = 2**17  # values kept of each input: enough for the 99.99th percentile


@dataclass
class _Seen:
    minima: list[Tensor] = field(default_factory=list)
    maxima: list[Tensor] = field(default_factory=list)
    sample: list[Tensor] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)

    def add(self, values: Tensor, count: int, seed: int) -> None:
        flat = values.detach().flatten()
        # The same places in every tensor of this shape, so that what two layers share gets one range, not two.
        places = torch.randint(len(flat), (count,), generator=torch.Generator().manual_seed(seed))
        self.minima.append(flat.amin())
        self.maxima.append(flat.amax())
        self.sample.append(flat[places.to(flat.device)])
        channel = 1 if values.ndim == 4 else -1
        self.means.append(values.detach().movedim(channel, 0).flatten(1).mean(1))

    def observed(self) -> Observed:
        ends = torch.stack(self.minima).float().cpu(), torch.stack(self.maxima).float().cpu()
        return Observed(*ends, torch.cat(self.sample).float().cpu(), torch.stack(self.means).mean(0))


def batches(context: Context, samples: int) -> list[Inputs]:
    """`samples` training examples (all, if there are fewer) as prepared batches, chosen by the run's seed."""
    train = context.task.train
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(context.seed))[:samples]
    return [inputs for inputs, _ in train.take(chosen).to(context.device).batches(BATCH)]


@torch.no_grad()
def observe(model: nn.Module, modules: dict[str, nn.Module], data: list[Inputs]) -> dict[str, list[Observed]]:
    """What each of `modules` is given when `model` answers `data`: an Observed for each of its inputs.

    Modules that are never called are missing. The model is used in eval mode.
    """
    model.eval()
    if not modules:
        return {}
    seen: dict[str, list[_Seen]] = {}
    share, number = -(-SAMPLE // len(data)), 0

    def look(name: str, given: tuple[Tensor, ...]) -> None:
        held = seen.setdefault(name, [_Seen() for _ in given])
        for one, values in zip(held, given, strict=True):
            one.add(values, share, number)

    with watched(modules, look):
        for number, inputs in enumerate(data):  # noqa: B007 - `look` reads it
            forward(model, inputs)
    return {name: [one.observed() for one in held] for name, held in seen.items()}


@contextlib.contextmanager
def watched(modules: dict[str, nn.Module], look: Callable[[str, tuple[Tensor, ...]], None]) -> Iterator[None]:
    """Call `look(name, given)` before each call of a module, as long as this lasts."""
    handles = [
        module.register_forward_pre_hook(lambda _, given, name=name: look(name, given))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
