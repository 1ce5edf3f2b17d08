"""ONNX functions of our own, made of standard operators, which the files define themselves.

Their inputs are all constants, so ONNX Runtime evaluates them once, when it loads a file, and then fuses operators as
if the results had been initializers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DOMAIN = "compression"  # of operators, in the files
# A reader that does not look into functions has to inline them first: OpenVINO 2026.4.1 refuses DequantizeBias, since
# its convolutions want a bias of a known rank, and takes the file after onnx.inliner.inline_local_functions.
FUNCTIONS = {
    # Unpack codes of `bits` bits and look each up in `levels` (2**bits,); the result has `shape`. `packed` is what
    # `packing.pack` wrote, padded with zeros to rows of `bits` bytes, which hold 8 codes: the low bits of a code are
    # in one byte, its high bits may be in the next. Arithmetic on bytes up to the look-up keeps the memory of loading
    # at about 14 bytes per code; on wider integers it was ten times as much. The high bits move up by 8 - shift in two
    # BitShifts, 7 - shift and 1, since a shift by 8 (where no bits are in the next byte) would be as wide as the type.
    "Unpack": """
<domain: "compression", opset_import: ["" : 20]>
Unpack<bits>(packed, levels, shape) => (values)
{
  width = Constant<value_int: int = @bits>()
  places = Constant<value = int64[8] {0, 1, 2, 3, 4, 5, 6, 7}>()
  eight = Constant<value_int: int = 8>()
  bit = Mul(places, width)
  byte = Div(bit, eight)
  one = Constant<value_int: int = 1>()
  last = Sub(width, one)
  following = Add(byte, one)
  next = Min(following, last)
  shift_wide = Mod(bit, eight)
  shift = Cast<to: int = 2>(shift_wide)
  full = Constant<value = uint8 {255}>()
  spare_wide = Sub(eight, width)
  spare = Cast<to: int = 2>(spare_wide)
  mask = BitShift<direction: string = "RIGHT">(full, spare)
  seven = Constant<value = uint8[8] {7, 7, 7, 7, 7, 7, 7, 7}>()
  left = BitwiseXor(seven, shift)
  once = Constant<value = uint8 {1}>()
  all = Constant<value_ints: ints = [-1]>()
  row = Reshape(width, all)
  by_row = Concat<axis: int = 0>(all, row)
  rows = Reshape(packed, by_row)
  low_bytes = Gather<axis: int = 1>(rows, byte)
  low = BitShift<direction: string = "RIGHT">(low_bytes, shift)
  high_bytes = Gather<axis: int = 1>(rows, next)
  raised = BitShift<direction: string = "LEFT">(high_bytes, left)
  high = BitShift<direction: string = "LEFT">(raised, once)
  joined = BitwiseOr(low, high)
  unsigned = BitwiseAnd(joined, mask)
  stream = Reshape(unsigned, all)
  start = Constant<value_ints: ints = [0]>()
  count = ReduceProd<keepdims: int = 1>(shape)
  used = Slice(stream, start, count)
  shaped = Reshape(used, shape)
  indices = Cast<to: int = 6>(shaped)
  values = Gather(levels, indices)
}
""",
    # The scale of a bias in integer kernels is the input's scale times the weight's.
    "DequantizeBias": """
<domain: "compression", opset_import: ["" : 20]>
DequantizeBias(codes, input_scale, weight_scale) => (bias)
{
  step = Mul(input_scale, weight_scale)
  bias = DequantizeLinear<axis: int = 0>(codes, step)
}
""",
    # The exporter would evaluate a plain Cast of a small tensor and write the floats.
    "Widen": """
<domain: "compression", opset_import: ["" : 20]>
Widen(small) => (floats)
{
  floats = Cast<to: int = 1>(small)
}
""",
}


def add_function_definitions(program: torch.onnx.ONNXProgram) -> None:
    """Add the definitions of the functions that an exported program calls, in place."""
    import onnx.parser
    from onnxscript import ir

    for name in sorted({node.op_type for node in program.model.graph if node.domain == DOMAIN}):
        function = ir.serde.deserialize_function(onnx.parser.parse_function(FUNCTIONS[name]))
        program.model.functions[function.identifier()] = function
