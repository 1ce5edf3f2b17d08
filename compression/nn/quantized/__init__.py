"""The one quantized representation: integer codes, scales, zero points, and layers that compute what they mean.

A quantizer only chooses numbers (`Numbers`); the layers here hold them packed at their bit width, compute with
them in torch, and `deploy.onnx` turns them into what ONNX Runtime runs as integers.
"""

from compression.nn.quantized.convolution import geometry
from compression.nn.quantized.layers import (
    ABOVE,
    DYNAMIC,
    Activation,
    QuantAdd,
    QuantAvgPool2d,
    QuantConv2d,
    QuantEmbedding,
    QuantInput,
    Quantize,
    QuantLinear,
    Weighted,
)
from compression.nn.quantized.numbers import (
    Numbers,
    choose_range,
    code_range,
    dequantize,
    merge,
    quantize,
    split,
    weight_range,
)
from compression.nn.quantized.packing import pack, unpack

__all__ = [
    "ABOVE",
    "DYNAMIC",
    "Activation",
    "Numbers",
    "QuantAdd",
    "QuantAvgPool2d",
    "QuantConv2d",
    "QuantEmbedding",
    "QuantInput",
    "QuantLinear",
    "Quantize",
    "Weighted",
    "choose_range",
    "code_range",
    "dequantize",
    "geometry",
    "merge",
    "pack",
    "quantize",
    "split",
    "unpack",
    "weight_range",
]
