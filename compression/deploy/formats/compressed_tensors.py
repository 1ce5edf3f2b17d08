"""`pack-quantized` of compressed-tensors, which vLLM and transformers read: a folder.

The format: https://github.com/vllm-project/compressed-tensors (compressors/pack_quantized).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from compression.deploy.formats.parts import grouped, pack_rows, require_whole_groups, take_apart, write_folder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from compression.nn.quantized import QuantLinear

KIND = "compressed-tensors"


def write(model: nn.Module, stored: Path, folder: Path) -> Path:
    """Write a model of integer weights, and the tokenizer in its folder `stored`, into a new `folder`.

    Raises UserError for a model that the format cannot hold.
    """
    parts = take_apart(model, KIND)
    tensors: dict[str, Tensor] = {}
    schemes: dict[tuple[int, bool, int], list[str]] = {}
    for name, layer in parts.integers.items():
        require_whole_groups(name, layer, KIND)
        symmetric = layer.qscheme == "symmetric"
        schemes.setdefault((layer.bits, symmetric, layer.group_size), []).append(name)
        tensors |= {f"{name}.{part}": tensor for part, tensor in _packed(layer, symmetric).items()}
    groups = {
        # vLLM joins layers that share an input; it knows the kind of layer better than names.
        f"group_{i}": {"targets": names if len(schemes) > 1 else ["Linear"], "weights": _arguments(*scheme)}
        for i, (scheme, names) in enumerate(schemes.items())
    }
    described = {
        "quant_method": KIND,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": parts.float_layers,
    }
    return write_folder(parts, tensors, described, stored, folder)


def _packed(layer: QuantLinear, symmetric: bool) -> dict[str, Tensor]:
    scale, zero_point = grouped(layer)
    packed = {
        "weight_packed": pack_rows(layer.codes, layer.bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor(layer.weight.shape),
    }
    # Zero points lie packed along the outputs.
    return packed if symmetric else packed | {"weight_zero_point": pack_rows(zero_point.T, layer.bits).T}


def _arguments(bits: int, symmetric: bool, group_size: int) -> dict[str, Any]:
    grouping: dict[str, Any] = (
        {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    )
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False, **grouping}
