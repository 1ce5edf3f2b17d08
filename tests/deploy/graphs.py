"""The graph that ONNX Runtime makes of a file, and runs."""

import onnx
import onnxruntime


def as_run(path):
    options, made = onnxruntime.SessionOptions(), path.with_suffix(".run.onnx")
    options.optimized_model_filepath, options.log_severity_level = str(made), 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(made).graph
