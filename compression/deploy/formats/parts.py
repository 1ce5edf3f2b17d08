"""A quantized model of transformers as its integer layers and the tensors that stayed in floats."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression import models
from compression.errors import UserError
from compression.files import fill_folder
from compression.models import conv1d, storage
from compression.nn.quantized import QuantLinear, pack
from compression.nn.quantized.low_bit import LowBitLayer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
WORD = 32  # bits that codes are packed into
LEAST_GROUP = 16  # weights that share a scale; with fewer, the scales take more than they are worth


@dataclass(frozen=True)
class Parts:
    """A model as `from_pretrained` of transformers knows it; the names are those of its modules and tensors."""

    config: dict[str, Any]
    integers: dict[str, QuantLinear]
    floats: dict[str, Tensor]  # all other weights, and the biases of the integer layers
    float_layers: list[str]  # the linear layers among them


def take_apart(model: nn.Module, kind: str) -> Parts:
    """The parts of a model for the format `kind`.

    Raises UserError where there are none: a model of another library, one that compression has given another structure
    than its config describes, without integer weights, or with integer inputs.
    """
    if models.spec_of(model)["builder"] != "huggingface":
        raise UserError(f"{kind} is for models of transformers; take the format onnx.")
    spec = storage.current_spec(model)
    with torch.device("meta"):
        fresh = models.rebuild(spec)
    other_way_round = conv1d.linearized(fresh)
    low_bit = {name: module for name, module in model.named_modules() if isinstance(module, LowBitLayer)}
    integers = {name: module for name, module in low_bit.items() if isinstance(module, QuantLinear)}
    _require_held(integers, set(other_way_round), kind)
    floats: dict[str, Tensor] = {}
    kept: set[int] = set()  # a tensor of two names is stored under the first, as transformers does
    with conv1d.as_stored(model, other_way_round):
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name.rpartition(".")[0] not in low_bit and id(tensor) not in kept:
                kept.add(id(tensor))
                floats[name] = tensor.detach().clone()
    for name, layer in low_bit.items():
        if name not in integers:
            floats[f"{name}.weight"] = layer.float_weight().detach().float()
        if (bias := getattr(layer, "bias", None)) is not None:
            floats[f"{name}.bias"] = bias.detach()
    config = {**spec["config"], "architectures": [type(model).__name__]}
    if config.get("tie_word_embeddings") and any(name in low_bit for name in _tied(fresh)):
        config["tie_word_embeddings"] = False  # each of the two has codes, or values, of its own
    _require_structure(fresh, floats, integers, kind)
    linear = {name for name, module in model.named_modules() if isinstance(module, (nn.Linear, LowBitLayer))}
    return Parts(config, integers, floats, sorted(linear - set(integers)))


def _tied(fresh: nn.Module) -> list[str]:
    pairs: Any = getattr(fresh, "all_tied_weights_keys", None) or {}
    return [name.rpartition(".")[0] for pair in pairs.items() for name in pair]


def _require_held(integers: dict[str, QuantLinear], other_way_round: set[str], kind: str) -> None:
    if not integers:
        raise UserError(f"{kind} is for linear layers of integer weights, and this model has none.")
    if found := [name for name, layer in integers.items() if layer.input_quantizer is not None]:
        raise UserError(
            f"{kind} holds integer weights alone, and the inputs of {found[0]} are integers, too; take onnx."
        )
    if found := [name for name, layer in integers.items() if layer.qscheme == "odd"]:
        raise UserError(f"{kind} has a code for zero, and the weights of {found[0]} have none; take onnx.")
    if found := sorted(other_way_round & set(integers)):
        raise UserError(f"{kind} is for linear layers, and {found[0]} is a Conv1D in transformers; take onnx.")


def _require_structure(
    fresh: nn.Module, floats: dict[str, Tensor], integers: dict[str, QuantLinear], kind: str
) -> None:
    """Raise UserError unless a model that the config describes has these tensors, and no others."""
    described = fresh.state_dict(keep_vars=True)
    found = {name: list(tensor.shape) for name, tensor in floats.items()}
    found |= {f"{name}.weight": list(layer.weight.shape) for name, layer in integers.items()}
    present = {id(tensor) for name, tensor in described.items() if name in found}
    wrong = [name for name, shape in found.items() if name not in described or list(described[name].shape) != shape]
    wrong += [name for name, tensor in described.items() if name not in found and id(tensor) not in present]
    if wrong:
        raise UserError(
            f"{kind} is read by the model's config, which does not describe {', '.join(wrong[:3])} as compression left "
            "it; take onnx."
        )


def shared_group_size(layers: Mapping[str, QuantLinear], kind: str, multiple: int = 1) -> int:
    """The largest size of groups that divides the groups and the inputs of all `layers`; 0 where none has groups.

    A group of 64 is two of 32 with one scale: so the last group of 352 inputs, which is half as large, is whole. Raises
    UserError where that is fewer than `LEAST_GROUP`, or no multiple of `multiple`.
    """
    grouped = {name: layer for name, layer in layers.items() if layer.group_size}
    size = math.gcd(*(each for layer in grouped.values() for each in (layer.group_size, layer.in_features)))
    if grouped and (size < LEAST_GROUP or size % multiple):
        name, layer = min(grouped.items(), key=lambda item: math.gcd(item[1].group_size, item[1].in_features))
        of = f", and in multiples of {multiple}" if multiple > 1 else ""
        raise UserError(
            f"{kind} takes groups that divide the inputs of a layer, of {LEAST_GROUP} or more{of}; {name} has groups "
            f"of {layer.group_size} and {layer.in_features} inputs."
        )
    return size


def grouped(layer: QuantLinear, size: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points of a layer in groups of `size`, `(outputs, groups)`; 0: one group for each output.

    The zero points are int8 codes, as the layer has them.
    """
    count = layer.in_features // size if size else 1
    repeats = layer.group_size // size if layer.group_size else 1

    def spread(constants: Tensor) -> Tensor:
        return constants.repeat_interleave(repeats, dim=1)[:, :count].expand(layer.out_features, count).contiguous()

    return spread(layer.scale), spread(layer.zero_points.to(torch.int8))


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Signed codes `(rows, columns)` as words of 32 bits, `(rows, ceil(columns bits / 32))`, lowest bits first."""
    rows, columns = codes.shape
    padded = F.pad(codes, (0, -columns % WORD), value=-(2 ** (bits - 1)))  # of which all bits are 0
    words = pack(padded, bits).view(torch.int32).view(rows, -1)
    return words[:, : -(-columns * bits // WORD)].contiguous()


def write_folder(parts: Parts, tensors: dict[str, Tensor], scheme: dict[str, Any], stored: Path, folder: Path) -> Path:
    """Write config, weights and the tokenizer of the folder `stored` into `folder`, for `from_pretrained`."""
    config = {**parts.config, "quantization_config": scheme}
    weights = {name: tensor.contiguous().clone() for name, tensor in (parts.floats | tensors).items()}
    with fill_folder(folder) as scratch:
        (scratch / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        safetensors.torch.save_file(weights, scratch / "model.safetensors", {"format": "pt"})
        copy_tokenizer(stored, scratch)
    return folder


def copy_tokenizer(stored: Path, folder: Path) -> None:
    """Copy the files of a tokenizer, if there are any."""
    for name in TOKENIZER_FILES:
        if (stored / name).exists():
            shutil.copyfile(stored / name, folder / name)
