"""Whole runs on own data, and on tasks of own code: their names are short wherever they stand."""

from pathlib import Path

import mlflow
import pytest

from compression import methods, tasks
from compression.errors import UserError
from compression.reporting import survey
from compression.runs import chain, command
from compression.runs.settings import Settings
from compression.tuning import tune
from compression.tuning.config import TuningConfig
from tests.models.tiny_bert import save_bert
from tests.tasks.test_code import EXAMPLE
from tests.tasks.test_text_files import ROWS, write


@pytest.fixture(scope="module")
def store(store):
    """The tracking store of this module, with the data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESSION_CACHE", str(store / "cache"))
        patch.setenv("OPTUNA_STORAGE", f"sqlite:///{store}/optuna.db")
        (store / "own code").mkdir()
        (store / "own code/mine.py").write_text(EXAMPLE)
        write(store / "reviews.csv", ROWS)
        yield store


CODE = "./own code/mine.py:make"


@pytest.fixture(scope="module")
def of_code(store):
    [step] = methods.parse("magnitude:sparsity=0.5")
    return chain.compress(Settings(task=CODE, threads=1), [step])


def test_a_run_on_own_code_has_a_short_name_and_repeats(of_code):
    run = mlflow.get_run(of_code["run"])
    assert run.info.run_name == "magnitude mine:make"
    assert of_code["title"] == "magnitude on mine:make"
    assert run.data.tags["task"] == of_code["task"] == "mine:make"
    assert run.data.params["task"] == CODE
    assert run.data.params["text_columns"] == ""
    assert run.inputs.dataset_inputs[0].dataset.name == "mine:make"
    words = command.words(Settings(task=CODE), "compress", methods.parse("magnitude"))
    assert words[words.index("--task") + 1] == CODE


def test_a_second_run_on_own_code_finds_the_first_ones_baseline(of_code):
    [step] = methods.parse("magnitude:sparsity=0.2")
    again = chain.compress(Settings(task=CODE, threads=1), [step])
    baselines = {mlflow.get_run(content["run"]).data.tags["baseline"] for content in (of_code, again)}
    assert len(baselines) == 1


def test_the_survey_finds_the_runs_by_the_short_name(of_code, tmp_path):
    page, _ = survey.write_survey(tasks.short_name(CODE), survey.Budget(), str(tmp_path / "page.html"))
    assert "mine:make" in page.read_text()


def test_tuning_works_on_own_code(of_code):
    content = tune.tune(
        Settings(task=CODE, threads=1), "magnitude", TuningConfig(trials=1, space="magnitude.sparsity=0.3..0.4")
    )
    assert "mine:make" in content["title"]


def test_own_text_with_a_pretrained_folder_is_compressed_and_told(store, capsys):
    bert = save_bert(Path("bert"))
    [step] = methods.parse("magnitude:sparsity=0.5")
    content = chain.compress(Settings(task="text", data="reviews.csv", model=bert, threads=1), [step])
    run = mlflow.get_run(content["run"])
    assert run.data.tags["task"] == content["task"] == "text/reviews"
    assert run.data.tags["data"].startswith(
        "reviews.csv: text from text; labels from label, 2 classes (no, yes); 33 train"
    )
    assert run.data.tags["data"] in capsys.readouterr().err
    assert {"accuracy", "accuracy_before", "f1", "accuracy_kept"} <= set(run.data.metrics)


def test_a_model_of_another_vocabulary_is_refused(store):
    write(store / "other.csv", [row | {"text": row["text"].replace("film", "book")} for row in ROWS])
    [step] = methods.parse("finetune:epochs=1")
    content = chain.train(Settings(task="text", data="reviews.csv", model="lstm", threads=1), step)
    model = f"runs:/{content['run']}/model"
    assert chain.evaluate(Settings(task="text", data="reviews.csv", model="lstm", baseline=model, threads=1))
    with pytest.raises(UserError, match=r"texts of another vocabulary than those of text/other"):
        chain.evaluate(Settings(task="text", data="other.csv", model="lstm", baseline=model, threads=1))


def test_a_survey_of_all_text_names_the_way_to_one_files(store, tmp_path):
    with pytest.raises(UserError, match="no finished run on text .* those on text/NAME"):
        survey.write_survey("text", survey.Budget(), str(tmp_path / "page.html"))
