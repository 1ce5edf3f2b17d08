"""The blocks that a walk has finished, on disk: a run that was killed goes on at the border of a block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compression.errors import UserError, first_line
from compression.models import storage
from compression.nn import layers
from compression.nn.graph import replace_module
from compression.training.checkpoint import load_checkpoint, save_whole
from compression.training.conditions import require_equal, step_conditions

if TYPE_CHECKING:
    from torch import nn

    from compression.training.context import Context

Description = dict[str, dict[str, Any]]


class BlockCheckpoints:
    """A file of each finished block, `<step>-<block>.pt`, in the run's folder, and those of the run being resumed."""

    def __init__(self, model: nn.Module, context: Context) -> None:
        self.context, self.conditions = context, step_conditions(model, context)
        self._before: Description = {}
        self._taken: list[str] = []

    def restore(self, model: nn.Module, name: str) -> dict[str, Any] | None:
        """Put the block `name` of the run being resumed into `model`; what was recorded of it, None if there is none.

        Raises UserError if the file is damaged, or of another model or step.
        """
        self._before = _describe(model.get_submodule(name))
        path = None if self.context.resume is None else self.context.resume / self._file(name)
        if path is None or not path.exists():
            return None
        content = load_checkpoint(path)
        try:
            require_equal(path, content["conditions"], self.conditions)
            for layer, description in content["layers"].items():
                replace_module(model, f"{name}.{layer}", storage.build_layer(description))
            block = model.get_submodule(name)
            block.load_state_dict(content["state"])
            for layer in content["masked"]:
                module = block.get_submodule(layer)
                layers.set_mask(module, layers.weight(module) != 0)
            row: dict[str, Any] = content["row"]
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"The checkpoint {path} is of another model or step, or damaged ({first_line(error)}); resume with "
                "the command of the run it belongs to, or start again without resume."
            ) from error
        self._write(name, content)  # so that this run can be resumed, too
        self._taken.append(name)
        return row

    def keep(self, model: nn.Module, name: str, row: dict[str, Any]) -> None:
        """Write the finished block `name`, and what was recorded of it."""
        block = model.get_submodule(name)
        after = _describe(block)
        content = {
            "conditions": self.conditions,
            "layers": {layer: after[layer] for layer in after if after[layer] != self._before.get(layer)},
            "state": block.state_dict(),
            "masked": list(layers.masked_layers(block)),
            "row": row,
        }
        self._write(name, content)

    def tell(self) -> None:
        """Warn of the blocks that were restored, once all are finished: what was told of them is in the other run."""
        if self._taken:
            self.context.record.warn(
                f"Taken from the run that was resumed, which may have warned of them: {', '.join(self._taken)}."
            )

    def _file(self, name: str) -> str:
        return f"{self.context.step_name}-{name}.pt"

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if self.context.accelerator.is_main_process:
            save_whole(content, self.context.folder / self._file(name))


def _describe(block: nn.Module) -> Description:
    return {
        name: storage.describe_layer(module)
        for name, module in block.named_modules()
        if type(module) in layers.STORABLE
    }
