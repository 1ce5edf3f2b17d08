"""`pack-quantized` of compressed-tensors, which vLLM and transformers read: a folder.

The format: https://github.com/vllm-project/compressed-tensors (compressors/pack_quantized).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from compression.deploy.formats.parts import grouped, pack_rows, shared_group_size, take_apart, write_folder

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
    schemes: dict[tuple[int, bool, bool], dict[str, QuantLinear]] = {}
    for name, layer in parts.integers.items():
        scheme = (layer.bits, layer.qscheme == "symmetric", bool(layer.group_size))
        schemes.setdefault(scheme, {})[name] = layer
    sizes = {scheme: shared_group_size(layers, KIND) for scheme, layers in schemes.items()}
    tensors = {
        f"{name}.{part}": tensor
        for scheme, layers in schemes.items()
        for name, layer in layers.items()
        for part, tensor in _packed(layer, scheme[1], sizes[scheme]).items()
    }
    groups = {
        # vLLM joins layers that share an input; it knows the kind of layer better than names.
        f"group_{i}": {
            "targets": [*layers] if len(schemes) > 1 else ["Linear"],
            "weights": _arguments(*scheme[:2], sizes[scheme]),
        }
        for i, (scheme, layers) in enumerate(schemes.items())
    }
    described = {
        "quant_method": KIND,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": parts.float_layers,
    }
    return write_folder(parts, tensors, described, stored, folder)


def _packed(layer: QuantLinear, symmetric: bool, group_size: int) -> dict[str, Tensor]:
    scale, zero_point = grouped(layer, group_size)
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
