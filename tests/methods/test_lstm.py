"""Every method compresses an LSTM, and its model reloads and deploys; or it says in one sentence why it cannot."""

import copy

import pytest
import torch
from torch import nn

from compression import methods, params
from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity
from compression.errors import UserError
from compression.methods.distill.students.teacher_student import StudentSelection
from compression.models import storage
from compression.nn.quantized import QuantEmbedding, QuantLinear
from compression.nn.recurrent import Gates
from compression.tasks.task import predict
from tests.conftest import tiny_bert, tiny_lstm, words_task

REFUSED = {
    "structured": "does not cut the units of an LSTM",
    "tucker": "nothing to decompose",
    "cp": "nothing to decompose",
    **dict.fromkeys(("layerwise", "drop_layers", "l0"), "it takes a transformer"),
    **dict.fromkeys(("gptq", "awq", "smoothquant"), "no transformer that can be compressed block by block"),
    **dict.fromkeys(("feature", "attention", "relational"), "TextLSTM has no stages that could be compared"),
}
IN_FLOATS = ("static", "mixed", "qat", "lsq", "dorefa", "bnn")  # these quantize inputs with calibrated ranges
QUICK = {"epochs": 1, "warmup_epochs": 1, "generations": 1}


def step(name, **given):
    kind = methods.method(name)
    fields = params.fields(kind)
    return kind(**{n: v for n, v in (QUICK | given).items() if n in fields})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny_lstm()


def context_for(make_context, original):
    original = copy.deepcopy(original).requires_grad_(False)
    return make_context(words_task(), original, build=lambda _: tiny_lstm())


def apply_and_deploy(step, model, make_context):
    """Apply the step and check the model against its reloaded copy and its ONNX file; the model and the run logger."""
    run_context = context_for(make_context, model)
    task, found = run_context.task, step.apply(model, run_context).eval()
    if step.family == "quantize":  # others leave the layers that they found
        path = export(found, task.example(4), run_context.folder / "model.onnx")
        check_parity(found, path, task.test, task, threads=1)
    again = storage.load(storage.save(found, run_context.folder / "model", {}))
    assert torch.equal(predict(again, task.test)[0], predict(found, task.test)[0])
    return found, run_context.record


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_every_method_takes_an_lstm_or_says_why_not(name, model, make_context):
    given = {"student": "lstm"} if issubclass(methods.method(name), StudentSelection) else {}
    if name in REFUSED:
        with pytest.raises(UserError, match=REFUSED[name]):
            step(name, **given).apply(model, context_for(make_context, model))
        return
    found, record = apply_and_deploy(step(name, **given), model, make_context)
    stays = any(warning.startswith("Recurrent layers stay in floats: lstm;") for warning in record.warnings)
    assert stays == (name in IN_FLOATS)
    if stays:
        assert sum(isinstance(m, Gates) for m in found.modules()) == 4


def test_dynamic_leaves_no_weight_of_it_in_floats(model, make_context):
    found, record = apply_and_deploy(step("dynamic"), model, make_context)
    in_floats = [type(m) for m in found.modules() if isinstance(m, (nn.Linear, nn.Embedding))]
    assert not in_floats
    assert not record.warnings
    assert {m.activation for _, m in found.lstm.named_modules() if isinstance(m, QuantLinear)} == {"dynamic"}


@pytest.mark.parametrize("fields", [{"granularity": "group"}, {"symmetric": False}])
def test_scales_that_its_kernel_does_not_take_are_refused(fields, model, make_context):
    with pytest.raises(
        UserError, match="An LSTM in integers takes granularity=tensor, .* skip=lstm leaves it in floats"
    ):
        step("dynamic", **fields).apply(model, context_for(make_context, model))
    assert not any(isinstance(m, QuantEmbedding) for m in model.modules())


def test_a_skipped_lstm_stays_in_floats_with_a_warning(model, make_context):
    found, record = apply_and_deploy(step("dynamic", skip="lstm", granularity="group"), model, make_context)
    assert sum(isinstance(m, Gates) for m in found.modules()) == 4
    [warning] = record.warnings
    assert warning.startswith("Recurrent layers stay in floats: lstm;")


def test_it_learns_from_a_transformer_with_training_defaults_of_its_own(make_context):
    distill = methods.method("response")(student="lstm")
    task = words_task(from_scratch={"learning_rate": 2e-3})
    assert distill.training_for(task).learning_rate == 2e-3
    assert methods.method("response")().training_defaults(task) == task.training
    # A thinner copy of the teacher is built anew, a shallower one has its weights.
    assert methods.method("response")(width=0.5).training_defaults(task)["learning_rate"] == 2e-3
    assert methods.method("response")(layers=1).training_defaults(task) == task.training
    student = step("response", student="lstm").apply(tiny_bert(), context_for(make_context, tiny_bert()))
    assert type(student).__name__ == "TextLSTM"


def test_structured_refuses_it_before_anything_is_trained(model, make_context):
    with pytest.raises(UserError, match="does not cut the units of an LSTM"):
        step("structured").check(model, context_for(make_context, model))
