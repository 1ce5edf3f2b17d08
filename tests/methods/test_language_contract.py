"""Every method compresses a decoder and a word model of LSTMs; or it says in one sentence why it cannot."""

import copy
import math

import pytest
import torch

from compression import methods, params
from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity
from compression.errors import UserError
from compression.methods.distill.students.teacher_student import StudentSelection
from compression.models import storage
from compression.nn.layers import tied_layers
from compression.runs.chain import apply_step
from compression.tasks.task import evaluate, predict
from tests.conftest import kept_child
from tests.methods.tiny_language import TOKENS, language_task, tiny_decoder, tiny_lstm_lm, windows

MODELS = {"decoder": tiny_decoder, "lstm_lm": tiny_lstm_lm}
LEFT_TO_RIGHT = "a LlamaForCausalLM, which reads from left to right; it takes an encoder of the type distilbert, bert"
TIED = "There is nothing to (quantize|decompose).*; embedding and fc share one weight, which stays as it is"
NO_BLOCKS = "A WordLSTM is no transformer that can be compressed block by block"
NO_STAGES = "A WordLSTM has no stages that could be compared; name layers, pairs=TEACHERS:STUDENTS"
REFUSED = {
    "decoder": {
        "attention": f"attention compares queries with all keys, which is wrong for {LEFT_TO_RIGHT}",
        "layerwise": f"style=tinybert compares queries with all keys: take style=distilbert for {LEFT_TO_RIGHT}",
        "l0": f"l0 has no gates for the heads and neurons of {LEFT_TO_RIGHT}",
        **dict.fromkeys(("tucker", "cp"), "There is nothing to decompose: the model has no convolution"),
    },
    "lstm_lm": {
        "structured": "structured does not cut the units of an LSTM",
        **dict.fromkeys(("tucker", "cp", "svd", "lsq", "dorefa", "bnn", "mixed"), TIED),
        **dict.fromkeys(("gptq", "awq", "smoothquant"), NO_BLOCKS),
        **dict.fromkeys(("layerwise", "drop_layers", "l0"), "A WordLSTM has no attention heads or layers"),
        **dict.fromkeys(("feature", "attention", "relational"), NO_STAGES),
    },
}
# An export takes seconds, so not all; the others leave layers in the same forms.
EXPORTED = ("static", "weight_only")
QUICK = {"epochs": 1, "warmup_epochs": 1, "generations": 1, "examples": 32, "calibration_samples": 32}
TIES_KEPT = ("prune", "decompose")  # families that leave an embedding and the output layer of its weight alone
TRAINED = ("movement", "block_movement")  # but those train them


@pytest.fixture(scope="module")
def trained():
    """The models by kind, each after a few epochs on the text."""
    made = {}

    def of(kind, context):
        if kind not in made:
            torch.manual_seed(0)
            model = MODELS[kind]()
            made[kind] = methods.method("finetune")(epochs=4 if kind == "decoder" else 1).apply(model, context(model))
        return copy.deepcopy(made[kind]).eval().requires_grad_(False)

    return of


@pytest.fixture
def context_of(make_context):
    """`context_of(kind)(original)`: a context whose students are of one kind."""
    task = language_task(train=windows(64, 1))

    def of(kind):
        made = {name: lambda _: MODELS[kind]() for name in ("load", "build")}
        return lambda original: make_context(task, original, child=kept_child, **made)

    return of


def step_of(name):
    kind = methods.method(name)
    student = {"student": "decoder"} if issubclass(kind, StudentSelection) else {}
    return kind(**{field: value for field, value in (QUICK | student).items() if field in params.fields(kind)})


def require_refusal(step, model, context, said):
    with pytest.raises(UserError, match=said) as refused:
        step.apply(model, context)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", list(methods.METHODS))
def test_every_method_takes_a_language_model_or_says_why_not(name, kind, trained, context_of, tmp_path):
    original = trained(kind, context_of(kind))
    model, context = copy.deepcopy(original).requires_grad_(True), context_of(kind)(original)
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    step = step_of(name).resolved(context.task)
    if said := REFUSED[kind].get(name):
        require_refusal(step, model, context, said)
        return
    step.check(copy.deepcopy(model), context)
    found, _ = apply_step(step, model, context.for_step(1, name))
    assert all(torch.equal(before[name], tensor) for name, tensor in original.state_dict().items())
    for module in found.modules():
        assert not hasattr(module, "parametrizations")
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert math.isfinite(evaluate(found, context.task.test, context.task)["perplexity"])
    again = storage.load(storage.save(found, tmp_path / "model", {}))
    torch.testing.assert_close(predict(again, context.task.test)[0], predict(found, context.task.test)[0])
    if step.family in TIES_KEPT:
        require_ties(found, original, trains=name in TRAINED)
        told = any("alone, which share one weight" in sentence for sentence in context.record.warnings)
        assert told == (name not in (*TRAINED, "drop_layers"))  # which leaves layers alone on purpose
    if name in EXPORTED and kind == "decoder":
        file = export(found, context.task.example(4), tmp_path / "model.onnx")
        assert check_parity(found, file, context.task.test, context.task, threads=1).agreement >= 0.998


def require_ties(found, original, trains):
    """The output layer still has the embedding's weight and, unless a training changed it, that of the original."""
    [(head, embedding)] = tied_layers(found).items()
    weight = found.get_submodule(embedding).weight
    assert bool((weight != 0).all())
    assert not hasattr(found.get_submodule(head), "mask")
    if not trains:
        assert torch.equal(weight, original.get_submodule(embedding).weight)


@pytest.mark.parametrize("skip", ["lm_head", "model.embed_tokens"])
def test_an_embedding_and_its_output_layer_are_quantized_together_or_not_at_all(skip, trained, context_of):
    original = trained("decoder", context_of("decoder"))
    context = context_of("decoder")(original)
    step = methods.method("dynamic")(skip=skip)
    found, _ = apply_step(step, copy.deepcopy(original), context.for_step(1, "dynamic"))
    assert tied_layers(found) == {"lm_head": "model.embed_tokens"}
    assert type(found.model.layers[0].self_attn.q_proj).__name__ == "QuantLinear"
    assert "dynamic left lm_head and model.embed_tokens alone, which share one weight." in context.record.warnings
    [(_, share)] = context.record.history["coverage"]
    total = sum(parameter.numel() for parameter in original.parameters())
    norms = sum(p.numel() for name, p in original.named_parameters() if "norm" in name)
    assert share == pytest.approx(1 - (TOKENS * 32 + norms) / total)
