"""Texts as padded tensors of token ids."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from compression.models import TEXT_MODELS, huggingface

if TYPE_CHECKING:
    import pyarrow as pa

    from compression.nn.inputs import Inputs
    from compression.tasks.cache import Tensors

MAX_LENGTH = 128  # tokens, as in Devlin et al. 2018: the few longer examples of GLUE are cut
CHUNK = 1024  # rows tokenised and padded at a time, to the longest among them


@dataclass(frozen=True)
class Encoder:
    """A tokenizer and the tensors, among those it makes, that its model takes."""

    tokenizer: Any
    names: tuple[str, ...]

    def fingerprint(self) -> str:
        """A SHA-256 over all that decides what a text becomes."""
        total = hashlib.sha256(repr((self.names, MAX_LENGTH)).encode())
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            for file in sorted(Path(folder).iterdir()):
                total.update(file.name.encode() + file.read_bytes())
        return total.hexdigest()

    def encode(self, table: pa.Table, columns: tuple[str, ...]) -> Tensors:
        """One text or a pair per row to tensors `(rows, longest)`: ids as int32, zeros and ones as uint8."""
        parts = [self._encode(rows, columns) for rows in table.to_batches(max_chunksize=CHUNK)]
        longest = max(part["input_ids"].shape[1] for part in parts)
        return {name: torch.cat([self._pad(part[name], name, longest) for part in parts]) for name in self.names}

    def _encode(self, rows: pa.RecordBatch, columns: tuple[str, ...]) -> Tensors:
        texts = [rows.column(name).to_pylist() for name in columns]
        encoded = self.tokenizer(*texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="np")
        small = {name: torch.int32 if name == "input_ids" else torch.uint8 for name in self.names}
        return {name: torch.from_numpy(encoded[name]).to(kind) for name, kind in small.items()}

    def _pad(self, tensor: Tensor, name: str, length: int) -> Tensor:
        value = self.tokenizer.pad_token_id if name == "input_ids" else 0
        return functional.pad(tensor, (0, length - tensor.shape[1]), value=value)


def encoder(model: str, default: str) -> Encoder:
    """The encoder that goes with the model called `model`; UserError if it cannot be had.

    One of the lab's own reads with the tokenizer of the model `default`.
    """
    if model in TEXT_MODELS:
        return Encoder(huggingface.tokenizer(default), ("input_ids", "attention_mask"))
    tokenizer, taken = huggingface.tokenizer(model), huggingface.input_names(model)
    return Encoder(tokenizer, tuple(name for name in tokenizer.model_input_names if name in taken))


def trim(inputs: Inputs) -> Inputs:
    """The same batch as int64, cut to its longest example."""
    assert isinstance(inputs, dict)
    longest = int(inputs["attention_mask"].sum(1).max())
    return {name: tensor[:, :longest].long() for name, tensor in inputs.items()}
