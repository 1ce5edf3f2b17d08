"""The formats in which a stored model is written for other tools, and who reads them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


@dataclass(frozen=True)
class Format:
    """A format of `compression export`."""

    about: str
    writer: str  # "module:function" of a model, the folder where it and its tokenizer are stored, and what to write
    caution: str = ""  # what to know of a file that was written

    def write(self, model: nn.Module, stored: Path, output: Path) -> Path:
        """Write a model; the file or folder. Raises UserError where the format cannot hold it, and leaves no file."""
        module, _, function = self.writer.partition(":")
        writer: Any = getattr(importlib.import_module(f"compression.deploy.formats.{module}"), function)
        path: Path = writer(model, stored, output)
        return path


# Imported by the command line's help: torch comes with the modules of the writers.
FORMATS = {
    "onnx": Format("one file to deploy", "single_file:onnx"),
    "qcdq": Format(
        "ONNX in standard operators with 8-bit containers",
        "single_file:exchange",
        "below 8 bits ONNX Runtime rounds the biases of this format to wide steps, and may answer otherwise than the "
        "model, unless its optimisations are off; the format onnx answers as the model does.",
    ),
    "pth": Format("the weights alone", "single_file:weights"),
    "genai": Format("a folder of a language model for onnxruntime-genai", "genai:write"),
    "compressed-tensors": Format(
        "a folder of integer weights for vLLM and transformers",
        "compressed_tensors:write",
        "transformers reads zero points in it with quantization_config=CompressedTensorsConfig(dequantize=True) alone.",
    ),
    "gptq": Format("a folder of integer weights for gptqmodel, auto-round and vLLM", "gptq:write"),
    "gguf": Format("a Llama's integer weights for llama.cpp", "gguf:write"),
}
