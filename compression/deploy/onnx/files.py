"""ONNX files on disk: one file, and beside it one with the weights where they do not fit into it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

# Bytes of weights that one file holds. A protobuf message ends at 2**31 - 1; the rest of a graph takes far less than
# the 147 MB between them.
MAX_WEIGHTS = 2_000_000_000
INLINE = 1024  # bytes of a tensor that stays in the file: ONNX Runtime reads the values of shapes and axes there


def weights_file(path: Path) -> Path:
    """The file with the weights of the ONNX file `path`, which names it, where there is one: `model.onnx.data`."""
    return path.with_name(f"{path.name}.data")


def parts(path: Path) -> list[Path]:
    """The ONNX file `path`, and the file with its weights if they are apart: what has to be kept together."""
    return [path, *([weights_file(path)] if weights_file(path).exists() else [])]


def remove(path: Path) -> None:
    """Delete an ONNX file with all its parts, if it is there."""
    for part in (path, weights_file(path)):
        part.unlink(missing_ok=True)


def write(model: ir.Model, path: Path) -> None:
    """Write a graph, whose weights go into a file beside it if they are more than `MAX_WEIGHTS` bytes.

    The graph is written without the shapes of intermediate values, which no runtime reads. Raises OSError.
    """
    import onnx_ir as ir

    weights = [value.const_value for value in model.graph.initializers.values()]
    remove(path)
    if sum(weight.nbytes for weight in weights if weight is not None) > MAX_WEIGHTS:
        beside = weights_file(path).name
        model = ir.external_data.unload_from_model(model, path.parent, beside, size_threshold_bytes=INLINE)
    proto = ir.to_proto(model)
    # With shapes ONNX Runtime would fuse SkipLayerNormalization, and a batch of a quantized MiniLM took 131 ms, not
    # 109.
    del proto.graph.value_info[:]
    path.write_bytes(proto.SerializeToString())


def copy(source: Path, target: Path) -> list[Path]:
    """Copy an ONNX file to `target`, and its weights to the name that goes with it; the files. Raises OSError."""
    import onnx_ir as ir

    if weights_file(source).exists():  # the file names the other one
        write(ir.load(source), target)
    else:
        remove(target)
        shutil.copyfile(source, target)
    return parts(target)
