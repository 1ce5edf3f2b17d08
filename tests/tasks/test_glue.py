import pytest
import torch

from compression import models
from compression.errors import UserError
from compression.nn.inputs import forward
from compression.tasks import glue, load
from compression.tasks.glue import CORPORA
from tests.models.tiny_bert import VOCABULARY, save_bert
from tests.tasks.data_files import hub_repository, write_parquet
from tests.tasks.fake_hub import serve

IDS = {word: i for i, word in enumerate(VOCABULARY)}


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


def texts(count, words="the film was good"):
    return [f"{words} {' '.join(['very'] * (i % 7))}" for i in range(count)]


def write(folder, name, train=40, test=10):
    """A corpus of GLUE with a few made-up rows, as on the hub."""
    corpus = CORPORA[name]
    for split, count in (("train", train), (corpus.test, test), (corpus.mismatched, test)):
        columns = {column: texts(count) for column in corpus.columns}
        labels = [i % len(corpus.labels) if corpus.labels else i / 8 for i in range(count)]
        if split:
            file = folder / name / f"{split}-00000-of-00001.parquet"
            write_parquet(file, columns | {"label": labels, "idx": list(range(count))}, corpus.labels)
    return str(folder)


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_loads_trains_and_is_scored_by_its_official_figure(tmp_path, bert, name):
    task = load(f"glue/{name}", data=write(tmp_path, name), model=bert)
    assert [len(split) for split in task.splits().values()] == [36, 4, 10]
    model = models.build(bert, task).eval()
    inputs, targets = next(task.test.batches(10))
    logits = forward(model, inputs)
    assert logits.shape == (10, task.outputs)
    task.loss(logits, targets, label_smoothing=0.0).backward()
    assert next(iter(task.compute_metrics(logits.detach(), targets))) == task.metric
    assert task.source == f"the folder {tmp_path}"


def test_a_model_of_the_lab_reads_as_the_tasks_own_does_and_has_a_recipe_of_its_own(tmp_path, bert, monkeypatch):
    monkeypatch.setattr(glue, "DEFAULT_MODEL", bert)
    task = load("glue/mrpc", data=write(tmp_path, "mrpc"), model="lstm")
    assert task.training["learning_rate"] == glue.FROM_SCRATCH["learning_rate"] == task.from_scratch["learning_rate"]
    model = models.build("lstm", task).eval()
    assert models.spec_of(model)["arguments"] == {"outputs": 2, "vocabulary": len(VOCABULARY), "width": 1.0}
    assert forward(model, next(task.test.batches(10))[0]).shape == (10, 2)
    ids, student = (
        next(load("glue/mrpc", data=str(tmp_path), model=bert).test.batches(10))[0],
        models.build("lstm", task),
    )
    assert forward(student, ids).shape == (10, 2)  # beside its teacher, and what that is given


def test_the_official_figures_are_those_of_the_benchmark():
    others = {name: corpus.metric for name, corpus in CORPORA.items() if corpus.metric != "accuracy"}
    assert others == {"cola": "matthews_correlation", "mrpc": "f1", "qqp": "f1", "stsb": "pearson"}


def test_a_pair_is_read_as_the_tokenizer_reads_it(tmp_path, bert):
    corpus = CORPORA["rte"]
    for split in ("train", "validation"):
        columns = {"sentence1": ["The film was good."] * 4, "sentence2": ["badly"] * 4, "label": [0, 1, 0, 1]}
        write_parquet(tmp_path / f"{split}.parquet", columns, corpus.labels)
    words = ["[CLS]", "the", "film", "was", "good", ".", "[SEP]", "bad", "##ly", "[SEP]"]
    inputs = load("glue/rte", data=str(tmp_path), model=bert).example()
    assert inputs["input_ids"].tolist() == [[IDS[word] for word in words]]
    assert inputs["token_type_ids"].tolist() == [[0] * 7 + [1] * 3]
    assert inputs["attention_mask"].tolist() == [[1] * 10]


def test_a_batch_is_cut_to_its_longest_example(tmp_path, bert):
    task = load("glue/sst2", data=write(tmp_path, "sst2"), model=bert)
    lengths = task.test.inputs["attention_mask"].sum(1)
    for i, (inputs, _) in enumerate(task.test.batches(3)):
        longest = int(lengths[3 * i : 3 * i + 3].max())
        assert {tensor.shape[1] for tensor in inputs.values()} == {longest}
        assert {tensor.dtype for tensor in inputs.values()} == {torch.int64}
    assert len(set(lengths.tolist())) > 1


def test_padding_changes_no_logits(tmp_path, bert):
    task = load("glue/sst2", data=write(tmp_path, "sst2"), model=bert)
    model = models.build(bert, task).eval()
    together = forward(model, next(task.test.batches(10))[0])
    alone = torch.cat([forward(model, inputs) for inputs, _ in task.test.batches(1)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_a_text_longer_than_128_tokens_is_cut(tmp_path, bert):
    for split in ("train", "validation"):
        columns = {"sentence": ["good " * 200, "bad"], "label": [1, 0]}
        write_parquet(tmp_path / f"{split}.parquet", columns)
    inputs = load("glue/sst2", data=str(tmp_path), model=bert).example(2)
    assert inputs["input_ids"].shape == (2, 128)


def test_training_and_validation_rows_are_disjoint_and_fixed(tmp_path, bert):
    write(tmp_path, "stsb")  # there every row has a target of its own
    task = load("glue/stsb", data=str(tmp_path), model=bert)
    train, validation = set(task.train.targets.tolist()), set(task.validation.targets.tolist())
    assert not train & validation
    assert train | validation == {i / 8 for i in range(40)}
    again = load("glue/stsb", data=str(tmp_path), model=bert)
    assert torch.equal(again.validation.targets, task.validation.targets)


def test_from_the_cache_comes_the_same_task(tmp_path, bert):
    folder = write(tmp_path, "mnli")
    first, second = (load("glue/mnli", data=folder, model=bert) for _ in range(2))
    assert first.digest == second.digest
    assert list(first.train.inputs) == list(second.train.inputs)
    assert list(first.further_test_splits) == list(second.further_test_splits) == ["mismatched"]
    assert first.tokenizer is not None


def test_another_tokenizer_is_another_data_set(tmp_path, bert):
    folder = write(tmp_path, "sst2")
    other = save_bert(tmp_path / "other")
    vocabulary = tmp_path / "other/tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace('"very"', '"extremely"'))
    digests = {load("glue/sst2", data=folder, model=model).digest for model in (bert, other)}
    assert len(digests) == 2


def test_a_limit_takes_the_first_of_each_split_and_says_so(tmp_path, bert):
    folder = write(tmp_path, "mnli")
    whole = load("glue/mnli", data=folder, model=bert)
    few = load("glue/mnli", data=folder, model=bert, limit=5)
    assert [len(split) for split in few.splits().values()] == [5, 4, 5]
    assert torch.equal(few.train.targets, whole.train.targets[:5])
    assert few.is_limited
    assert few.digest != whole.digest


def test_mnli_has_its_mismatched_genres_beside_the_test_split(tmp_path, bert):
    folder = write(tmp_path, "mnli")
    assert len(load("glue/mnli", data=folder, model=bert).further_test_splits["mismatched"]) == 10
    (tmp_path / "mnli/validation_mismatched-00000-of-00001.parquet").unlink()
    assert "mismatched" not in load("glue/mnli", data=folder, model=bert).further_test_splits


def test_the_hub_gives_the_same_task_as_a_folder_of_its_files(tmp_path, bert, point_at):
    folder = write(tmp_path, "mnli")
    splits = ["train", "validation_matched", "validation_mismatched"]
    with serve({"datasets/nyu-mll/glue": hub_repository(tmp_path / "mnli", "mnli", splits)}) as endpoint:
        point_at(endpoint)
        task = load("glue/mnli", model=bert)
    assert task.digest == load("glue/mnli", data=folder, model=bert).digest
    assert len(task.further_test_splits["mismatched"]) == 10


def test_the_data_of_another_corpus_is_refused(tmp_path, bert):
    folder = write(tmp_path, "sst2")
    with pytest.raises(UserError, match="holds the classes negative, positive; the task has unacceptable"):
        load("glue/cola", data=f"{folder}/sst2", model=bert)


def test_without_a_tokenizer_the_model_is_named():
    with pytest.raises(UserError, match="no text model 'bert-large-uncased'.*HF_ENDPOINT"):
        load("glue/sst2")
