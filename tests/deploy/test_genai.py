"""onnxruntime-genai runs the folder that `compression export --format genai` writes, and answers as the model does."""

import json

import onnxruntime_genai as og
import pytest
import torch

from compression.deploy.formats import genai
from compression.deploy.onnx.decoder import CachedDecoder, CacheShape
from compression.errors import UserError
from compression.models import storage
from compression.runs import export
from tests.methods.tiny_language import tiny_decoder, tiny_lstm_lm
from tests.models import tiny_gguf

PROMPT, LENGTH = [5, 7, 9], 20


def continued_by_genai(folder):
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=LENGTH)
    generator = og.Generator(model, parameters)
    generator.append_tokens([PROMPT])
    while not generator.is_done():
        generator.generate_next_token()
    return generator.get_sequence(0).tolist()


@torch.no_grad()
def continued(model):
    ids = torch.tensor([PROMPT])
    while ids.shape[1] < LENGTH:
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0].tolist()


def strong_decoder():
    """One whose random weights are large, or it would write the same token for ever."""
    torch.manual_seed(0)
    model = tiny_decoder()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    return model


def test_it_writes_the_same_text(tmp_path):
    model = strong_decoder()
    stored = storage.save(model, tmp_path / "stored", {})
    tiny_gguf.tokenizer().save_pretrained(stored)
    folder = export.write(str(stored), "genai", tmp_path / "genai")
    assert len(set(continued(model))) > 6
    assert continued_by_genai(folder) == continued(model)
    assert json.loads((folder / "tokenizer.json").read_text()) == json.loads((stored / "tokenizer.json").read_text())


def test_it_ends_where_the_model_ends(tmp_path):
    model = strong_decoder()
    expected = continued(model)
    last = expected.index(expected[8], len(PROMPT))
    model.config.eos_token_id = expected[last]
    found = continued_by_genai(genai.write(model, tmp_path, tmp_path / "genai"))
    assert found == expected[:last]


def test_what_it_does_not_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="decoders of transformers that keep keys and values"):
        genai.write(tiny_lstm_lm(), tmp_path, tmp_path / "genai")
    unequal = CachedDecoder(tiny_decoder(), [CacheShape(2, 8)] * 2 + [CacheShape(1, 8)] * 2)
    with pytest.raises(UserError, match="pruning left unequal ones"):
        genai.describe(unequal)
    assert not (tmp_path / "genai").exists()
