"""A model that version 0.1.0 stored (a pruned and statically quantized digits_cnn_small) still loads."""

from pathlib import Path

import mlflow
import numpy as np
import torch

from compression import tracking
from compression.models import storage

FOLDER = Path(__file__).parent / "stored_by_0_1"
# What 0.1.0 answered for these two images, four decimals.
LOGITS = [
    [0.56, -0.5989, -0.4923, -0.019, 0.3979, -0.0932, 0.9879, -0.6066, 0.57, -0.2321],
    [0.6628, -0.4799, -0.4159, 0.288, 0.154, 0.0126, 0.6499, -0.4695, 0.3345, 0.1289],
]


def images():
    return torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)


def test_a_model_of_0_1_loads_and_answers_as_it_did():
    answers = storage.load(FOLDER)(images()).detach()
    torch.testing.assert_close(answers, torch.tensor(LOGITS), rtol=0, atol=5.1e-5)


def test_mlflow_loads_it_by_the_loader_that_it_names():
    assert "loader_module: compression.artifacts" in (FOLDER / "MLmodel").read_text()
    answers = mlflow.pyfunc.load_model(str(FOLDER)).predict(images().numpy())
    np.testing.assert_allclose(answers, LOGITS, rtol=0, atol=5.1e-5)


def test_what_is_stored_now_names_where_the_loader_is(tmp_path):
    model = storage.load(FOLDER)
    folder = storage.save(model, tmp_path / "model", {})
    tracking.write_mlmodel(folder)
    assert "loader_module: compression.models.storage" in (folder / "MLmodel").read_text()
    assert torch.equal(storage.load(folder)(images()), model(images()))
