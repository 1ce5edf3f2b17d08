"""Students made from their teacher: thinner and shallower copies."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from compression import models
from compression.errors import UserError
from compression.models import storage
from compression.models.resnet import BasicBlock
from compression.nn import transformer


def thinner_copy(teacher: nn.Module, width: float) -> nn.Module:
    """The architecture of `teacher` with `width` times its channels, untrained.

    Raises UserError for models that have no width, and for those whose layers compression has changed.
    """
    spec = models.spec_of(teacher)
    arguments, is_language_model = spec.get("arguments", {}), transformer.is_decoder(teacher) and "head" in spec
    if "width" not in arguments and not is_language_model:
        raise UserError(
            f"width={width:.2g} makes thinner copies of the lab's own networks, and a {type(teacher).__name__} is "
            "none; name a model in its place, or take a shallower copy by its number of layers."
        )
    if storage.has_changed_structure(teacher):
        raise UserError(
            f"width={width:.2g} makes thinner copies of networks as they were built, and compression changed the "
            "teacher's layers; name a model in its place."
        )
    if is_language_model:
        return models.rebuild(spec | {"config": thinner_config(teacher, width)})
    return models.rebuild(spec | {"arguments": arguments | {"width": arguments["width"] * width}})


def thinner_config(decoder: nn.Module, width: float) -> dict[str, Any]:
    """The config of a decoder with `width` times its keys and their queries, hidden dimensions and neurons.

    Heads keep their size, and as many of them share a key as before.
    """
    config: Any = copy.deepcopy(models.transformers_config(decoder))
    block, entry = transformer.blocks(decoder)[0], transformer.architecture(decoder).width
    groups = max(1, round(block.head_groups * width))
    heads = groups * (block.heads // block.head_groups)
    hidden = config.hidden_size // block.heads * heads
    changes = {"num_attention_heads": heads, "num_key_value_heads": groups, "hidden_size": hidden}
    if getattr(config, entry) is not None:  # GPT-2 has four times its hidden size, if nothing is said
        changes[entry] = block.neurons * groups // block.head_groups
    if getattr(config, "word_embed_proj_dim", None) == config.hidden_size:  # OPT
        changes["word_embed_proj_dim"] = hidden
    for name, value in changes.items():
        if hasattr(config, name):
            setattr(config, name, value)
    described: dict[str, Any] = config.to_dict()
    return described


def shallower_copy(teacher: nn.Module, count: int) -> nn.Module:
    """A copy of `teacher` with its weights and `count` of its layers or residual blocks, evenly spaced.

    DistilBERT's initialization: Sanh et al. 2019, arXiv:1910.01108, section 3. Raises UserError where the teacher has
    fewer layers, or none that can be dropped.
    """
    # A teacher is frozen, and so is its copy.
    student = copy.deepcopy(teacher).requires_grad_(True)
    if not transformer.is_transformer(student):
        keep_blocks(student, count)
        return student
    total = len(transformer.layers(student))
    if count > total:
        raise UserError(f"layers={count} is more than the {total} layers of the teacher; take fewer.")
    require_linear_layers(student)
    transformer.keep_layers(student, evenly_spaced(total, count))
    return student


def require_linear_layers(teacher: nn.Module) -> None:
    """Raise UserError for a transformer with decomposed or quantized layers, which its config cannot describe."""
    parts = transformer.architecture(teacher)
    for layer in transformer.layers(teacher):
        if not all(isinstance(layer.get_submodule(part), nn.Linear) for part in (parts.query, parts.up)):
            raise UserError(
                "A shallower copy is made of plain linear layers, and the teacher's were decomposed or quantized; "
                "name a student=, or distil first."
            )


def keep_blocks(model: nn.Module, count: int) -> None:
    """Keep `count` blocks of a residual network, in place: as many in each stage, its first one among them.

    The first block of a stage changes the shape. Raises UserError for other models, and where `count` is no multiple
    of the stages or more than the blocks.
    """
    stages = [s for s in getattr(model, "stages", []) if all(isinstance(block, BasicBlock) for block in s)]
    if not stages:
        raise UserError(
            f"layers={count} drops layers of transformers and of the lab's residual networks, and a "
            f"{type(model).__name__} is neither; name a student=, or make a thinner copy with width=."
        )
    each, rest = divmod(count, len(stages))
    if rest or each > min(map(len, stages)):
        most = len(stages) * min(map(len, stages))
        raise UserError(f"layers={count}: the teacher has {len(stages)} stages; take a multiple of it, {most} at most.")
    for stage in stages:
        # the first, and evenly spaced ones of those behind it
        kept = {0, *(1 + i for i in evenly_spaced(len(stage) - 1, each - 1))}
        # from the end, for a deletion moves the blocks behind it
        for i in reversed(range(len(stage))):
            if i not in kept:
                del stage[i]


def evenly_spaced(total: int, count: int) -> list[int]:
    """`count` of the indices below `total`, evenly spaced, with the last one: 2, 5, 8 and 11 for 4 of 12.

    The mapping of TinyBERT: Jiao et al. 2020, arXiv:1909.10351, section 4.1.
    """
    return [(i + 1) * total // count - 1 for i in range(count)]
