"""The walk through a transformer: each block is compressed on what the compressed blocks before it return.

In memory beside the model are the hidden states of the calibration examples, one block's worth of activations, and
what the caller gathers of one group of layers. On a GPU lies one block at a time.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import psutil
import torch
from torch import Tensor, nn

from compression.methods.blockwise.blocks import Arguments, Blocks, Group, find_blocks, map_tensors, short_example
from compression.nn.hooks import Call, on_forward
from compression.nn.inputs import Inputs, attention_mask, forward, map_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from compression.methods.blockwise.checkpoint import BlockCheckpoints
    from compression.tasks.task import Task
    from compression.training.context import RunLogger

BATCH_TOKENS = 2048  # of a batch: with 512 to a text, the attention maps of 9 heads take 38 MB


@dataclass
class _Batch:
    """What one batch of calibration examples brings to the blocks."""

    states: Tensor  # (batch, length, hidden), before the block at hand
    arguments: dict[str, Arguments]  # by the blocks in `Blocks.same_arguments`
    mask: Tensor | None  # (batch, length), False for padding


class _ReachedError(Exception):
    """Ends a forward pass where all that was wanted of it is known."""


@dataclass(frozen=True)
class Stage:
    """A group of linear layers whose turn it is in the walk."""

    group: Group
    block: nn.Module
    layers: dict[str, nn.Linear]  # by name
    sources: dict[str, nn.Module]  # see `Group`
    _batches: Sequence[_Batch]
    _arguments: str
    _memory: MemoryPeak

    @torch.no_grad()
    def rows(self) -> Iterator[Tensor]:
        """Yield what the layers are given, `(n, in_features)` for each batch, without padding."""
        for batch in self._batches[:-1]:
            yield self._input_rows(batch)

    @torch.no_grad()
    def probe(self) -> Tensor:
        """What the layers are given of a few short texts, which belong to no batch of `rows`."""
        return self._input_rows(self._batches[-1])

    def _input_rows(self, batch: _Batch) -> Tensor:
        name, first = next(iter(self.layers.items()))
        device, caught = first.weight.device, []

        def catch(call: Call) -> None:
            caught.append(call.inputs[0])
            self._memory.sample()
            raise _ReachedError

        with contextlib.suppress(_ReachedError), on_forward({name: first}, catch, before=True):
            arguments = batch.arguments[self._arguments].map(lambda t: t.to(device))
            arguments.call(self.block, batch.states.to(device))
        [given] = caught
        if batch.mask is not None and not batch.mask.all() and given.shape[:-1] == batch.mask.shape:
            return cast("Tensor", given[batch.mask.to(device)])
        return cast("Tensor", given.flatten(0, -2))


class MemoryPeak:
    """The most memory that was seen in use since the last reset: allocated on a GPU, else of the whole process."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.bytes = 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def sample(self) -> float:
        """Look at the memory; the peak so far, in MB (1e6 bytes)."""
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        else:
            # Not the system's own high-water mark, which nothing lowers again before the next block.
            self.bytes = max(self.bytes, psutil.Process().memory_info().rss)
        return self.bytes / 1e6


def batch_size(task: Task) -> int:
    """How many examples of a task go through a block together: `BATCH_TOKENS` tokens of them."""
    inputs = task.train.inputs
    length = inputs["input_ids"].shape[1] if isinstance(inputs, dict) and "input_ids" in inputs else 1
    return int(max(1, BATCH_TOKENS // length))


@torch.no_grad()
def walk(
    model: nn.Module,
    batches: Sequence[Inputs],
    device: torch.device,
    record: RunLogger,
    checkpoints: BlockCheckpoints | None = None,
) -> Iterator[Stage]:
    """Yield the groups of linear layers of each block in turn, for the caller to compress before it asks for the next.

    The layers of a group are given what the groups and blocks before it make now. `batches` are prepared. Finished
    blocks go to `checkpoints`, and those of a run that is resumed come from there, without being yielded. Leaves
    `model` in eval mode on `device`, and records time and memory of each block in the table `blocks`. Raises UserError
    as `find_blocks` does.
    """
    model.cpu().eval()
    batches = [map_inputs(lambda t: t.cpu(), inputs) for inputs in batches]
    short = short_example(batches[0])
    with _without_cache(model):
        blocks = find_blocks(model, short)
        caught = _catch(model, blocks, [*batches, short])
        memory, rows = MemoryPeak(device), []
        for name, groups in blocks.groups.items():
            memory.reset()
            start, arguments = time.perf_counter(), blocks.same_arguments[name]
            row = checkpoints and checkpoints.restore(model, name)
            block = model.get_submodule(name).to(device)
            for group in () if row else groups:
                layers = {layer: cast("nn.Linear", model.get_submodule(layer)) for layer in group.layers}
                sources = {source: model.get_submodule(source) for source in group.sources}
                yield Stage(group, block, layers, sources, caught, arguments, memory)
                memory.sample()
            for batch in caught:
                others = batch.arguments[arguments].map(lambda t: t.to(device))
                batch.states = others.call(block, batch.states.to(device)).cpu()
                memory.sample()
            block.cpu()
            if not row:
                seconds = time.perf_counter() - start
                row = {"block": name, "seconds": round(seconds, 3), "peak_memory_mb": round(memory.sample(), 1)}
                if checkpoints:
                    checkpoints.keep(model, name, row)
            rows.append(row)
    model.to(device)
    record.table("blocks", rows)
    if checkpoints:
        checkpoints.tell()


def _catch(model: nn.Module, blocks: Blocks, batches: Sequence[Inputs]) -> list[_Batch]:
    """What each batch brings to the first block, and to all whose other arguments are tensors of their own."""
    names = list(dict.fromkeys(blocks.same_arguments.values()))
    caught: list[_Batch] = []
    last: dict[str, Arguments] = {}
    for inputs in batches:
        calls = _calls(model, names, inputs)
        states = calls[names[0]][0]
        # Windows without padding have one mask and the same positions: stored once, not once a batch.
        last = {name: _share(arguments, last.get(name)) for name, (_, arguments) in calls.items()}
        caught.append(_Batch(states, last, attention_mask(inputs)))
    return caught


def _calls(model: nn.Module, names: Sequence[str], inputs: Inputs) -> dict[str, tuple[Tensor, Arguments]]:
    """Hidden states and other arguments of the blocks `names`, from a forward pass that ends at the last of them."""
    found: dict[str, tuple[Tensor, Arguments]] = {}

    def catch(call: Call) -> None:
        states, arguments = Arguments.split(call)
        found[call.name] = states.clone(), arguments
        if call.name == names[-1]:
            raise _ReachedError

    watched = {name: model.get_submodule(name) for name in names}
    with contextlib.suppress(_ReachedError), on_forward(watched, catch, before=True):
        forward(model, inputs)
    return found


def _share(new: Arguments, old: Arguments | None) -> Arguments:
    """`new` with the tensors of `old` in place of equal ones."""
    if old is None or len(new.tensors) != len(old.tensors):
        return new
    known = iter(old.tensors)

    def share(tensor: Tensor) -> Tensor:
        other = next(known)
        return other if torch.equal(tensor, other) else tensor

    return Arguments(map_tensors(share, new.positional), map_tensors(share, new.named), new.states)


@contextlib.contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Keep a transformer from filling a cache of keys and values, which a second call of a block would find full."""
    config: Any = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    if before is None:
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = before
