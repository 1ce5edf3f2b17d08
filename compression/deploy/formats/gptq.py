"""The format of GPTQ's checkpoints, which gptqmodel, auto-round, vLLM and others read: a folder.

It came with https://github.com/AutoGPTQ/AutoGPTQ: codes packed along the inputs, zero points less 1, 16-bit scales.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from compression.deploy.formats.parts import WORD, grouped, pack_rows, shared_group_size, take_apart, write_folder
from compression.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from compression.deploy.formats.parts import Parts
    from compression.nn.quantized import QuantLinear

KIND = "gptq"
WIDTHS = (2, 3, 4, 8)
IN_BLOCK = re.compile(r"\.\d+\.")


def write(model: nn.Module, stored: Path, folder: Path) -> Path:
    """Write a model of integer weights, and the tokenizer in its folder `stored`, into a new `folder`.

    Scales are rounded to 16 bits, and codes and zero points are the model's. Raises UserError for a model that the
    format cannot hold.
    """
    parts = take_apart(model, KIND)
    bits = _require_uniform(parts)
    group_size = shared_group_size(parts.integers, KIND)
    tensors: dict[str, Tensor] = {}
    for name, layer in parts.integers.items():
        _require_words(name, layer)
        tensors |= {f"{name}.{part}": tensor for part, tensor in _packed(name, layer, group_size).items()}
    skipped = _skipped(parts)
    described = {
        "quant_method": KIND,
        "bits": bits,
        "group_size": group_size or -1,
        "desc_act": False,  # the columns lie in their order, whatever the order in which they were rounded
        "sym": all(layer.qscheme == "symmetric" for layer in parts.integers.values()),
        "lm_head": False,
        "checkpoint_format": "gptq",
        **({"dynamic": {f"-:^{name.replace('.', '[.]')}$": {} for name in skipped}} if skipped else {}),
    }
    return write_folder(parts, tensors, described, stored, folder)


def _require_uniform(parts: Parts) -> int:
    """The bits of all layers. Raises UserError if they differ, or some have groups of another size, or none."""
    schemes = {(layer.bits, layer.group_size) for layer in parts.integers.values()}
    if len(schemes) > 1:
        raise UserError("gptq takes one width and one size of groups for all layers; take compressed-tensors.")
    [(bits, _)] = schemes
    if bits not in WIDTHS:
        raise UserError(
            f"gptq takes weights of {', '.join(map(str, WIDTHS))} bits, not of {bits}; take compressed-tensors."
        )
    return bits


def _require_words(name: str, layer: QuantLinear) -> None:
    if layer.in_features % WORD or layer.out_features % WORD:
        raise UserError(
            f"gptq takes inputs and outputs in multiples of {WORD}; {name} is {layer}; take compressed-tensors."
        )


def _skipped(parts: Parts) -> list[str]:
    """The layers of the blocks that stayed in floats. Raises UserError for integer layers outside the blocks."""
    if outside := [name for name in parts.integers if not IN_BLOCK.search(name)]:
        raise UserError(
            f"gptq holds layers of the blocks as integers, and no others; leave out {', '.join(outside)} with skip, "
            "or take compressed-tensors."
        )
    return [name for name in parts.float_layers if IN_BLOCK.search(name)]


def _packed(name: str, layer: QuantLinear, group_size: int) -> dict[str, Tensor]:
    scale, zero_point = grouped(layer, group_size)
    codes, lowest = layer.codes, -(2 ** (layer.bits - 1))
    size = group_size or layer.in_features
    by_group = codes.view(len(codes), -1, size)
    # Stored is the zero point less 1, and some readers do not take the lowest code for it. It is that of groups of
    # zeros alone, to which any other belongs as well.
    lowest_zero = zero_point == lowest
    if (by_group[lowest_zero] != lowest).any():
        raise UserError(f"gptq takes no zero point of 0, as {name} has; take compressed-tensors.")
    zero_point = zero_point + lowest_zero.to(torch.int8)
    codes = (by_group + lowest_zero.unsqueeze(2).to(torch.int8)).view_as(codes)
    return {
        "qweight": pack_rows(codes, layer.bits).T,
        "qzeros": pack_rows(zero_point.T - 1, layer.bits),
        "scales": scale.T.half(),
        "g_idx": torch.arange(layer.in_features, dtype=torch.int32) // size,
    }
