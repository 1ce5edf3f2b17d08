import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from compression import models
from compression.errors import UserError
from compression.models import hub, huggingface
from compression.nn.inputs import forward
from tests.conftest import stripes_task
from tests.models.tiny_bert import save_bert

BATCH = {"input_ids": torch.tensor([[2, 5, 6, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
CLOSED = "http://127.0.0.1:9"  # the discard port: nobody listens


def text_task(**changes):
    return stripes_task(**({"name": "glue/sst2", "input_shape": (), "outputs": 3} | changes))


@pytest.fixture
def bert(tmp_path):
    return save_bert(tmp_path / "bert")


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)


def test_a_folder_gives_its_pretrained_weights_and_a_classifier_of_the_tasks_outputs(bert):
    model = models.build(bert, text_task())
    assert forward(model.eval(), BATCH).shape == (1, 3)
    saved = load_file(f"{bert}/model.safetensors")["embeddings.word_embeddings.weight"]
    assert torch.equal(model.state_dict()["bert.embeddings.word_embeddings.weight"], saved)
    assert model.config.id2label == {0: "left", 1: "middle", 2: "right"}


def test_attention_is_spelled_out_and_weights_are_float32_even_from_a_half_precision_file(tmp_path):
    folder = save_bert(tmp_path, classes=3)
    huggingface.AutoModelForSequenceClassification.from_pretrained(folder).half().save_pretrained(folder)
    model = models.build(folder, text_task())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(**BATCH, output_attentions=True).attentions[0].shape == (1, 2, 4, 4)


def test_the_spec_survives_json_and_rebuilds_without_the_folder(bert):
    model = models.build(bert, text_task())
    text = json.dumps(models.spec_of(model))
    assert bert not in text  # no path of this machine in a checkpoint
    again = models.rebuild(json.loads(text))
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert models.spec_of(again) == models.spec_of(model) == json.loads(text)
    again.load_state_dict(model.state_dict())
    assert torch.equal(forward(again.eval(), BATCH), forward(model.eval(), BATCH))


def test_regression_has_one_output(bert):
    model = models.build(bert, text_task(outputs=1, labels=()))
    assert forward(model.eval(), BATCH).shape == (1, 1)
    assert model.config.problem_type == "regression"


def test_a_classifier_of_other_outputs_is_refused(tmp_path):
    folder = save_bert(tmp_path, classes=5)
    with pytest.raises(UserError, match="has 5 outputs; glue/sst2 needs 3"):
        models.build(folder, text_task())


def test_a_folder_without_a_model_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=f"The folder {tmp_path} holds no usable"):
        models.build(str(tmp_path), text_task())


def test_a_cut_weights_file_is_refused(bert):
    os.truncate(f"{bert}/model.safetensors", 3000)
    with pytest.raises(UserError, match="holds no usable"):
        models.build(bert, text_task())


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(Evil.mark),)


def test_a_pickled_weights_file_runs_nothing(bert, tmp_path):
    Evil.mark = tmp_path / "was here"
    (Path(bert) / "model.safetensors").unlink()
    (Path(bert) / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil()}, protocol=2))
    with pytest.raises(UserError, match="holds no usable.*a pickle of more than tensors$"):
        models.build(bert, text_task())
    assert not Evil.mark.exists()


def test_a_name_that_cannot_be_fetched_names_the_mirror_setting_and_folders(no_hub, caplog):
    with pytest.raises(UserError, match="'bert-nowhere'.*127.0.0.1:9 cannot be reached.*HF_ENDPOINT.*local folder"):
        models.build("bert-nowhere", text_task())
    assert "Retrying" not in caplog.text  # as the hub's libraries would, for most of a minute


def test_offline_mode_asks_nobody_and_says_so(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.is_reachable()
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        huggingface.load_tokenizer("bert-nowhere")


def test_a_tokenizer_that_cannot_pad_is_refused(bert):
    file = Path(bert) / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": None}))
    with pytest.raises(UserError, match="no padding token"):
        huggingface.load_tokenizer(bert)


def test_the_inputs_are_those_of_the_models_forward(bert):
    assert {"input_ids", "attention_mask", "token_type_ids"} <= huggingface.input_names(bert)
