"""Decoders of transformers from a folder with their tokenizer: pruned, quantized, reloaded and deployed."""

import pytest
import torch

from compression import methods, models
from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity
from compression.models import storage
from compression.models.conv1d import as_stored, linearized
from compression.nn.layers import prunable_layers, tied_layers
from compression.nn.quantized import QuantLinear
from compression.runs.chain import apply_step
from compression.tasks import load
from compression.tasks.task import evaluate, predict
from tests.methods.tiny_language import tiny_decoder
from tests.models.pretrained import VOCABULARY, tokenizer

TEXT = "\n".join(
    f"the {('good', 'bad')[i % 2]} film number {i % 40} is not very {('bad', 'good')[i % 2]}" for i in range(300)
)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """`read(kind)`: the task and the model of a folder that the hub's libraries could have saved."""
    monkeypatch.setenv("COMPRESSION_CACHE", str(tmp_path / "cache"))

    def of(kind):
        torch.manual_seed(0)
        folder = tmp_path / kind
        made = tiny_decoder(kind, vocab_size=len(VOCABULARY), num_hidden_layers=1)
        with as_stored(made, linearized(made)):  # GPT-2's layers
            made.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        (tmp_path / "films.txt").write_text(TEXT)
        task = load("language", data=str(tmp_path / "films.txt"), model=str(folder), context=16)
        return task, models.build(str(folder), task)

    return of


@pytest.mark.parametrize("kind", ["gpt2", "opt", "mistral", "qwen2"])
def test_a_chain_compresses_it_and_the_model_and_the_file_answer_alike(kind, read, make_context, tmp_path):
    task, model = read(kind)
    context = make_context(task, model)
    pruned, _ = apply_step(methods.method("magnitude")(sparsity=0.5), model, context.for_step(1, "magnitude"))
    weights = torch.cat([layer.weight.flatten() for layer in prunable_layers(pruned).values()])
    assert (weights == 0).float().mean() == pytest.approx(0.5, abs=1e-3)
    assert len(tied_layers(pruned)) == 1
    small, _ = apply_step(methods.method("weight_only")(group_size=16), pruned, context.for_step(2, "weight_only"))
    assert not any(type(module) is torch.nn.Linear for module in small.modules())
    assert sum(isinstance(module, QuantLinear) for module in small.modules()) >= 5
    assert evaluate(small, task.test, task)["perplexity"] < 2 * task.outputs  # as untrained as before
    again = storage.load(storage.save(small, tmp_path / "model", {}))
    torch.testing.assert_close(predict(again, task.test)[0], predict(small, task.test)[0])
    file = export(small, task.example(4), tmp_path / "model.onnx")
    assert check_parity(small, file, task.test, task, threads=1).agreement >= 0.998
