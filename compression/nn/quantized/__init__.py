"""The low-bit representations of all quantization methods, and layers that store and compute with them.

A method chooses quantization parameters (`QParams`). The layers store their weights as integer codes packed at their
bit width (layers.py), as a codebook and indices (clustered.py) or as 16-bit floats (half.py), and simulate integer
arithmetic in torch; `deploy.onnx` exports them to what ONNX Runtime computes in integers.
"""

from compression.nn.quantized.activations import (
    DYNAMIC,
    TIE_SHIFT,
    ActivationScheme,
    QuantAdd,
    QuantAvgPool2d,
    QuantConcat,
    QuantInput,
    Quantize,
)
from compression.nn.quantized.layers import QuantConv2d, QuantEmbedding, QuantLinear, QuantWeightLayer
from compression.nn.quantized.low_bit import conv_arguments
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
    "QuantConcat",
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
