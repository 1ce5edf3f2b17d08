"""Where models run: ONNX files, checked against torch, measured and timed."""
