"""Operators that our ONNX files define themselves, as functions made of standard ones.

All that they are given are constants, so ONNX Runtime evaluates them once, when it loads the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DOMAIN = "compression"
FUNCTIONS = {
    # codes = step * unsigned + offset; bits come lowest first, as `packing.pack` writes them.
    "Unpack": """
<domain: "compression", opset_import: ["" : 20]>
Unpack<bits, step, offset>(packed, shape) => (codes)
{
  all = Constant<value_ints: ints = [-1]>()
  width = Constant<value_int: int = @bits>()
  places = Constant<value = uint8[8] {0, 1, 2, 3, 4, 5, 6, 7}>()
  one = Constant<value = uint8 {1}>()
  column = Unsqueeze(packed, all)
  shifted = BitShift<direction: string = "RIGHT">(column, places)
  stream = BitwiseAnd(shifted, one)
  flat = Reshape(stream, all)
  count = ReduceProd<keepdims: int = 1>(shape)
  used = Mul(count, width)
  start = Constant<value_ints: ints = [0]>()
  kept = Slice(flat, start, used)
  row = Reshape(width, all)
  by_code = Concat<axis: int = 0>(all, row)
  digits = Reshape(kept, by_code)
  digits_float = Cast<to: int = 1>(digits)
  first = Constant<value_int: int = 0>()
  next = Constant<value_int: int = 1>()
  exponents = Range(first, width, next)
  exponents_float = Cast<to: int = 1>(exponents)
  two = Constant<value_float: float = 2.0>()
  powers = Pow(two, exponents_float)
  unsigned = MatMul(digits_float, powers)
  factor = Constant<value_float: float = @step>()
  shift = Constant<value_float: float = @offset>()
  scaled = Mul(unsigned, factor)
  signed = Add(scaled, shift)
  bytes = Cast<to: int = 3>(signed)
  codes = Reshape(bytes, shape)
}
""",
    # What 1 stands for in the bias of an integer kernel is the input's scale times the weight's.
    "DequantizeBias": """
<domain: "compression", opset_import: ["" : 20]>
DequantizeBias(codes, input_scale, weight_scale) => (bias)
{
  step = Mul(input_scale, weight_scale)
  bias = DequantizeLinear<axis: int = 0>(codes, step)
}
""",
    # As a plain Cast, the exporter would work small ones out and write the floats.
    "Widen": """
<domain: "compression", opset_import: ["" : 20]>
Widen(halves) => (floats)
{
  floats = Cast<to: int = 1>(halves)
}
""",
}


def define_functions(program: torch.onnx.ONNXProgram) -> None:
    """Put the definitions of those functions into an exported program that it calls."""
    import onnx.parser
    from onnxscript import ir

    for name in sorted({node.op_type for node in program.model.graph if node.domain == DOMAIN}):
        function = ir.serde.deserialize_function(onnx.parser.parse_function(FUNCTIONS[name]))
        program.model.functions[function.identifier()] = function
