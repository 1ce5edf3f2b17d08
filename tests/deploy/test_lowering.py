"""Traced programs are brought to the exporter's operators by a few rewrites, or decomposed where those are wrong."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from compression.deploy.onnx import translation
from compression.deploy.onnx.export import export
from compression.deploy.session import Session
from compression.models import resnet
from tests.conftest import tiny_bert
from tests.random_networks import random_network

IMAGES = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(12).reshape(2, 6)


class Of(nn.Module):
    """A module of a function, behind a convolution."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(4, 4, 3, padding=1), function

    def forward(self, images):
        return self.function(self.conv(images)).flatten(1)


def read_before_and_after(x):
    y = x * 1.5
    return functional.relu_(x) - y + x


def read_again(x):
    return functional.relu(x, inplace=True) + 0.5 * x


def through_a_view(x):
    view = x.flatten(2)
    view.mul_(2.0)
    return x.flatten(2) + view


def through_a_slice(x):
    x[:, :2].add_(3.0)
    return x


def fresh(x):
    return functional.hardtanh(functional.dropout(x * 2, 0.5, False), inplace=True)


def batch_statistics(x):
    return functional.batch_norm(x, None, None, training=True)


def mixed_numbers(x):
    counts = (x > 0).to(torch.int64)
    return (counts & 1) * 0.5 + x + (counts > 0.5) + counts / 2


def other_pool(x):
    return functional.adaptive_avg_pool2d(x, (2, 1)) + functional.adaptive_avg_pool2d(x, 1)


FUNCTIONS = (
    read_before_and_after,
    read_again,
    through_a_view,
    through_a_slice,
    fresh,
    batch_statistics,
    mixed_numbers,
    other_pool,
)


@pytest.fixture
def decomposed(monkeypatch):
    """How often the exporter decomposed a program."""
    calls, real = [], translation._decompose
    monkeypatch.setattr(translation, "_GRAPHS", type(translation._GRAPHS)())
    monkeypatch.setattr(translation, "_decompose", lambda *given: calls.append(given) or real(*given))
    return calls


def answers(model, example, file):
    return Session(export(model, example, file))(example)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_operators_in_place_and_of_other_forms_keep_their_meaning(function, tmp_path):
    model = Of(function).eval()
    with torch.no_grad():
        expected = model(IMAGES)
    torch.testing.assert_close(answers(model, IMAGES, tmp_path / "m.onnx"), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(40, 44))
def test_a_random_network_answers_alike_lowered_and_decomposed(seed, tmp_path, monkeypatch, decomposed):
    model = random_network(seed)
    example = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    quick = answers(model, example, tmp_path / "quick.onnx")
    monkeypatch.setattr(translation, "_GRAPHS", type(translation._GRAPHS)())
    monkeypatch.setattr(translation, "lower", lambda *_: False)
    asked = len(decomposed)
    torch.testing.assert_close(quick, answers(model, example, tmp_path / "slow.onnx"), atol=1e-5, rtol=1e-5)
    assert len(decomposed) == asked + 1


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (lambda: resnet.resnet8(outputs=3, input_shape=[4, 8, 8]), IMAGES),
        (lambda: Of(fresh), IMAGES),
        (tiny_bert, {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}),
    ],
    ids=["resnet8", "in place", "bert"],
)
def test_usual_networks_need_no_decomposition(model, example, tmp_path, decomposed):
    export(model().eval(), example, tmp_path / "m.onnx")
    assert decomposed == []
