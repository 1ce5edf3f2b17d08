"""Text that a language model writes: greedy, or by beam search. Works on any module of `nn.inputs.forward`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.nn.inputs import forward

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Continuation:
    """How a model went on after a prompt, and what stands there in the data."""

    prompt: str
    expected: str
    written: str


@torch.inference_mode()
def generate(
    model: nn.Module, prompts: Sequence[Tensor], new_tokens: int, end: int | None = None, beams: int = 1
) -> list[Tensor]:
    """Return how the model goes on after each of `prompts` `(length,)`: up to `new_tokens` token ids, without `end`.

    `model` is a decoder in eval mode. With one beam the likeliest token is taken each time; with more, the likeliest of
    the texts that as many hypotheses end in, by log probability over length, as `generate` of transformers finds it. A
    hypothesis whose score no other can reach any more ends the search.
    """
    return (
        [_search(model, prompt, new_tokens, end, beams) for prompt in prompts]
        if beams > 1
        else _greedy(model, prompts, new_tokens, end)
    )


def _greedy(model: nn.Module, prompts: Sequence[Tensor], new_tokens: int, end: int | None) -> list[Tensor]:
    device = next(model.parameters()).device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    # Padded on the right: a decoder does not look at what comes later, so that nothing has to be masked.
    ids = torch.zeros(len(prompts), int(lengths.max()) + new_tokens, dtype=torch.int64, device=device)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    starts, rows = lengths.clone(), torch.arange(len(prompts), device=device)
    is_open = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for _ in range(new_tokens):
        logits = forward(model, {"input_ids": ids[:, : int(lengths.max())]})
        following = logits[rows, lengths - 1].argmax(1)
        is_open &= following != (-1 if end is None else end)
        if not is_open.any():
            break
        ids[rows[is_open], lengths[is_open]] = following[is_open]
        lengths = lengths + is_open
    return [row[start:stop].cpu() for row, start, stop in zip(ids, starts, lengths, strict=True)]


def _search(model: nn.Module, prompt: Tensor, new_tokens: int, end: int | None, beams: int) -> Tensor:
    device = next(model.parameters()).device
    ids = prompt.to(device).repeat(beams, 1)
    # All hypotheses are alike at first: but for one, they begin with no chance.
    scores = torch.full((beams,), -1e9, device=device)
    scores[0] = 0.0
    ended: list[tuple[float, Tensor]] = []
    for step in range(1, new_tokens + 1):
        logits = forward(model, {"input_ids": ids})[:, -1].float()
        total = scores[:, None] + logits.log_softmax(1)
        tokens = total.shape[1]
        # Twice as many as are needed, as some may be ends.
        values, places = total.flatten().topk(2 * beams)
        going: list[tuple[int, int, float]] = []
        for rank, (value, place) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
            beam, token = divmod(place, tokens)
            if token == end:
                if rank < beams:
                    ended.append((value / step, ids[beam, len(prompt) :]))
            elif len(going) < beams:
                going.append((beam, token, value))
        kept, following, best = (torch.tensor(each, device=device) for each in zip(*going, strict=True))
        ids, scores = torch.cat([ids[kept], following[:, None]], 1), best
        ended = sorted(ended, key=lambda hypothesis: -hypothesis[0])[:beams]
        if len(ended) == beams and ended[-1][0] >= scores.max().item() / step:
            break
    else:
        ended += [(score / new_tokens, row[len(prompt) :]) for score, row in zip(scores.tolist(), ids, strict=True)]
    return max(ended, key=lambda hypothesis: hypothesis[0])[1].cpu()
