"""The graph of an ONNX file after the optimizations of ONNX Runtime."""

import onnx
import onnxruntime


def optimized_graph(path):
    options, made = onnxruntime.SessionOptions(), path.with_suffix(".run.onnx")
    options.optimized_model_filepath, options.log_severity_level = str(made), 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(made).graph
