"""Text as padded tensors of token ids."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from compression.errors import UserError
from compression.models import TEXT_MODELS, huggingface

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

    from compression.nn.inputs import Inputs
    from compression.tasks.cache import Tensors

MAX_LENGTH = 128  # tokens, as in Devlin et al. 2018; the few longer examples of GLUE are truncated
CHUNK_ROWS = 1024  # rows tokenized and padded together, to the longest of them: bounds the memory in use


@dataclass(frozen=True)
class TableTokenizer:
    """Turns columns of text into the input tensors of a model."""

    tokenizer: PreTrainedTokenizerBase
    input_names: tuple[str, ...]  # the tokenizer's outputs that the model takes
    max_length: int = MAX_LENGTH  # tokens; longer texts are truncated

    def fingerprint(self) -> str:
        """Return a SHA-256 over everything that determines the tensors of a text."""
        total = hashlib.sha256(repr((self.input_names, self.max_length)).encode())
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            for file in sorted(Path(folder).iterdir()):
                total.update(file.name.encode() + file.read_bytes())
        return total.hexdigest()

    def tokenize(self, table: pa.Table, columns: tuple[str, ...]) -> Tensors:
        """Return tensors `(rows, longest)` of the text, or pair of texts, in `columns`.

        Token ids are int32; attention mask and token types are uint8. For a model without an attention mask, which
        reads padding too, all texts are padded to the same length, so that no text depends on its batch.
        """
        chunks = [self._tokenize(rows, columns) for rows in table.to_batches(max_chunksize=CHUNK_ROWS)]
        longest = max(chunk["input_ids"].shape[1] for chunk in chunks)
        return {
            name: torch.cat([self._pad(chunk[name], name, longest) for chunk in chunks]) for name in self.input_names
        }

    def token_counts(self, inputs: Tensors) -> Tensor:
        """Return how many tokens each text of `inputs` has, `(n,)`, without padding."""
        unmasked: Tensor = inputs["input_ids"] != self.tokenizer.pad_token_id
        return inputs.get("attention_mask", unmasked).sum(1)

    def _tokenize(self, rows: pa.RecordBatch, columns: tuple[str, ...]) -> Tensors:
        """Tokenize some rows, padded to the longest of them."""
        texts = [rows.column(name).to_pylist() for name in columns]
        encoded = self.tokenizer(
            *texts,
            truncation=True,
            max_length=self.max_length,
            padding=True if "attention_mask" in self.input_names else "max_length",
            return_attention_mask=True,  # also if the tokenizer's config does not list it
            return_tensors="np",
        )
        dtypes = {name: torch.int32 if name == "input_ids" else torch.uint8 for name in self.input_names}
        return {name: torch.from_numpy(encoded[name]).to(dtype) for name, dtype in dtypes.items()}

    def _pad(self, tensor: Tensor, name: str, length: int) -> Tensor:
        """Pad the input called `name`, `(rows, shorter)`, on the right to `(rows, length)`."""
        value = self.tokenizer.pad_token_id if name == "input_ids" else 0
        return functional.pad(tensor, (0, length - tensor.shape[1]), value=value)


def load_table_tokenizer(model: str, default: str) -> TableTokenizer:
    """Load the tokenizer of the model called `model`; for one of the lab's own, that of the model `default`.

    Raises UserError if it cannot be loaded, or if the model takes no token ids.
    """
    if model in TEXT_MODELS:
        return TableTokenizer(huggingface.load_tokenizer(default), ("input_ids", "attention_mask"))
    tokenizer, taken = huggingface.load_tokenizer(model), huggingface.input_names(model)
    names = [name for name in (*tokenizer.model_input_names, "attention_mask") if name in taken]
    if "input_ids" not in names:
        raise UserError(f"{model} reads no token ids, so no text can be given to it; choose an encoder such as BERT.")
    limits = (MAX_LENGTH, tokenizer.model_max_length, huggingface.max_length(model) or MAX_LENGTH)
    return TableTokenizer(tokenizer, tuple(dict.fromkeys(names)), min(limits))


def trim_padding(inputs: Inputs) -> Inputs:
    """Return a batch as int64, cut to its longest example if it has an attention mask."""
    assert isinstance(inputs, dict)
    longest = int(inputs["attention_mask"].sum(1).max()) if "attention_mask" in inputs else None
    return {name: tensor[:, :longest].long() for name, tensor in inputs.items()}
