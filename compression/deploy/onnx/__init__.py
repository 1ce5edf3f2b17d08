"""Models as ONNX files: the export, quantized layers and tensors as operators, and QCDQ for other tools."""
