"""The quantized representation of all methods: integer codes, scales, zero points, and layers that hold them.

A quantizer chooses quantization parameters (`QParams`). The layers here store the codes packed at their bit width and
simulate the integer arithmetic in torch; `deploy.onnx` exports them to what ONNX Runtime computes in integers.
"""

from compression.nn.quantized.convolution import conv_arguments
from compression.nn.quantized.layers import (
    DYNAMIC,
    TIE_SHIFT,
    ActivationScheme,
    QuantAdd,
    QuantAvgPool2d,
    QuantConv2d,
    QuantEmbedding,
    QuantInput,
    Quantize,
    QuantLinear,
    QuantWeightLayer,
)
from compression.nn.quantized.packing import pack, unpack
from compression.nn.quantized.qparams import (
    QParams,
    calc_qparams,
    code_range,
    dequantize,
    merge_groups,
    quantize,
    split_groups,
    weight_code_range,
)

__all__ = [
    "DYNAMIC",
    "TIE_SHIFT",
    "ActivationScheme",
    "QParams",
    "QuantAdd",
    "QuantAvgPool2d",
    "QuantConv2d",
    "QuantEmbedding",
    "QuantInput",
    "QuantLinear",
    "QuantWeightLayer",
    "Quantize",
    "calc_qparams",
    "code_range",
    "conv_arguments",
    "dequantize",
    "merge_groups",
    "pack",
    "quantize",
    "split_groups",
    "unpack",
    "weight_code_range",
]
