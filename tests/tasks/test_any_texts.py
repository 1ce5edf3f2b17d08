"""Texts and text models as people have them: what can be read is read right, and the rest is refused by name."""

import math

import pyarrow as pa
import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, XLNetConfig, XLNetForSequenceClassification

from compression import models
from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity
from compression.errors import UserError
from compression.models import storage
from compression.nn.inputs import forward
from compression.runs import loading
from compression.tasks import glue, load
from compression.tasks.task import evaluate
from tests.models.pretrained import INPUTS, SPECIAL, VOCABULARY, always, save_classifier
from tests.tasks.data_files import write_parquet

SENTENCES = [f"a {('bad', 'good')[i % 2]} film number {i}" for i in range(40)]
LABELS = [i % 2 for i in range(40)]
MNLI = ("entailment", "neutral", "contradiction")


def write(folder, name="sst2", classes=(), **changes):
    corpus = glue.CORPORA[name]
    columns = dict.fromkeys(corpus.columns, SENTENCES) | {"label": LABELS} | changes
    for split in ("train", corpus.test):
        write_parquet(folder / f"{split}.parquet", columns, classes)
    return str(folder)


def accuracy(model, task):
    return evaluate(model, task.test, task)["accuracy"]


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("labels", [("POSITIVE", "NEGATIVE"), ("negative", "positive"), ("Positive", "Negative")])
def test_a_classifier_is_right_whatever_the_order_of_its_classes(tmp_path, kind, labels):
    positive = [label.lower() for label in labels].index("positive")
    size = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48} if kind == "distilbert" else {}
    name = save_classifier(tmp_path / "model", labels, kind, always(positive), type_vocab_size=2, **size)
    task = load("glue/sst2", data=write(tmp_path, label=[1] * 40), model=name)
    model = loading.open_model(name, task)
    assert accuracy(model, task) == 1.0
    storage.save(model, tmp_path / "stored", {"model": name, "labels": task.labels})
    again = loading.open_model(str(tmp_path / "stored"), task)
    assert accuracy(again, task) == 1.0
    assert list(again.config.id2label.values()) == ["negative", "positive"]
    file = export(again, task.example(4), tmp_path / "model.onnx")
    assert check_parity(again, file, task.test, task, 1).actual.metrics()["accuracy"] == 1.0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_mnli_is_read_in_any_order(tmp_path, order):
    labels = tuple(MNLI[i].upper() for i in order)
    name = save_classifier(tmp_path / "model", labels, change=always(order.index(1)))
    task = load("glue/mnli", data=write(tmp_path, "mnli", label=[1] * 40), model=name)
    assert accuracy(loading.open_model(name, task), task) == 1.0


def test_classes_without_names_are_taken_in_their_order_and_that_is_told(tmp_path, caplog):
    name = save_classifier(tmp_path / "model", change=always(1))
    task = load("glue/sst2", data=write(tmp_path, label=[1] * 40), model=name)
    assert accuracy(loading.open_model(name, task), task) == 1.0
    assert "calls its outputs LABEL_0, LABEL_1: they are taken for the classes of glue/sst2" in caplog.text


def test_other_classes_are_refused(tmp_path):
    name = save_classifier(tmp_path / "model", ("spam", "ham"))
    task = load("glue/sst2", data=write(tmp_path), model=name)
    with pytest.raises(UserError, match="tells spam, ham apart, and glue/sst2 has the classes negative, positive"):
        loading.open_model(name, task)


def test_a_config_that_contradicts_itself_is_refused(tmp_path):
    name = save_classifier(tmp_path / "model", ("negative", "positive"), label2id={"positive": 0, "negative": 1})
    task = load("glue/sst2", data=write(tmp_path), model=name)
    with pytest.raises(UserError, match="contradicts itself"):
        loading.open_model(name, task)


def test_a_new_classifier_on_an_encoder_has_no_classes_yet(tmp_path, caplog):
    name = save_classifier(tmp_path / "model", ("spam", "ham"))
    encoder = models.huggingface.AutoModelForSequenceClassification.from_pretrained(name).bert
    encoder.save_pretrained(name)
    task = load("glue/sst2", data=write(tmp_path), model=name)
    assert loading.open_model(name, task).config.id2label == {0: "negative", 1: "positive"}


def stored(folder, task, **metadata):
    model = models.build("lstm", task).eval()
    storage.save(model, folder, {"model": "lstm", "labels": task.labels} | metadata)
    return model, str(folder)


@pytest.fixture
def tokenized(tmp_path, monkeypatch):
    """The lab's own models read with the tokenizer of this one."""
    name = save_classifier(tmp_path / "reader")
    monkeypatch.setattr(glue, "DEFAULT_MODEL", name)
    return name


def test_a_stored_model_of_the_same_classes_in_another_order_is_reordered(tmp_path, tokenized):
    rte, wnli = (load(f"glue/{name}", data=write(tmp_path / name, name), model="lstm") for name in ("rte", "wnli"))
    assert rte.labels[0] == "entailment"
    relabelled = [label.replace("not_entailment", "NOT entailment") for label in rte.labels]
    model, name = stored(tmp_path / "stored", rte, labels=relabelled)
    inputs = wnli.example(4)
    order = [relabelled.index("NOT entailment"), 0] if wnli.labels[0] == "not_entailment" else [0, 1]
    torch.testing.assert_close(forward(loading.open_model(name, wnli), inputs), forward(model, inputs)[:, order])


def test_a_stored_model_of_other_classes_is_refused(tmp_path, tokenized):
    _, name = stored(tmp_path / "stored", load("glue/cola", data=write(tmp_path, "cola"), model="lstm"))
    task = load("glue/sst2", data=write(tmp_path), model="lstm")
    with pytest.raises(UserError, match="tells unacceptable, acceptable apart, and glue/sst2 has .* negative"):
        loading.open_model(name, task)


def test_a_stored_model_of_another_vocabulary_is_refused(tmp_path, tokenized):
    task = load("glue/sst2", data=write(tmp_path), model="lstm")
    _, name = stored(tmp_path / "stored", task)
    task.tokenizer.save_pretrained(name)
    loading.open_model(name, task)
    other = save_classifier(tmp_path / "other", words=[*SPECIAL, *reversed(VOCABULARY[5:])])
    said = "stored .* another vocabulary than those of glue/sst2, which the tokenizer of .*other"
    with pytest.raises(UserError, match=said):
        loading.open_model(name, load("glue/sst2", data=str(tmp_path), model=other))
    said = "other reads another vocabulary than .*reader, whose tokenizer encodes the texts of glue/sst2"
    with pytest.raises(UserError, match=said):  # as a student
        loading.open_model(other, task)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "albert", "electra"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, kind):
    name = save_classifier(tmp_path / "model", kind=kind, words=None, embedding_size=32)
    with pytest.raises(UserError, match="has no tokenizer of its own"):
        load("glue/sst2", data=write(tmp_path), model=name)


def test_embeddings_may_be_padded_and_a_token_without_one_is_refused(tmp_path):
    padded = save_classifier(tmp_path / "padded", vocab_size=len(VOCABULARY) + 5)
    task = load("glue/sst2", data=write(tmp_path), model=padded)
    loading.open_model(padded, task)
    short = save_classifier(tmp_path / "short", vocab_size=len(VOCABULARY) - 1)  # it lacks the last word, "39"
    with pytest.raises(UserError, match=r"short does not take the inputs of glue/sst2 \(index out of range"):
        loading.open_model(short, task)


@pytest.mark.parametrize(("kind", "usable"), [("bert", 20), ("roberta", 19), ("gpt2", 20), ("electra", 20)])
def test_a_text_is_cut_to_the_positions_of_the_model(tmp_path, kind, usable):
    name = save_classifier(tmp_path / "model", kind=kind, max_position_embeddings=20, embedding_size=32)
    task = load("glue/sst2", data=write(tmp_path, sentence=["good " * 60] * 40), model=name)
    assert task.test.inputs["input_ids"].shape[1] == usable
    assert forward(loading.open_model(name, task), task.example(4)).isfinite().all()


def test_a_student_with_fewer_positions_than_the_texts_have_tokens_is_refused(tmp_path):
    teacher = save_classifier(tmp_path / "teacher")
    student = save_classifier(tmp_path / "student", max_position_embeddings=20)
    task = load("glue/sst2", data=write(tmp_path, sentence=[*SENTENCES[:-1], "good " * 60]), model=teacher)
    with pytest.raises(UserError, match="student does not take the inputs of glue/sst2"):
        loading.open_model(student, task)


def test_a_tokenizer_that_lists_no_attention_mask_gives_one_all_the_same(tmp_path):
    names = [save_classifier(tmp_path / name, inputs=inputs) for name, inputs in (("a", INPUTS), ("b", INPUTS[:2]))]
    folder = write(tmp_path)
    usual, unlisted = (load("glue/sst2", data=folder, model=name) for name in names)
    assert torch.equal(usual.test.inputs["attention_mask"], unlisted.test.inputs["attention_mask"])


def test_without_an_attention_mask_a_texts_logits_do_not_depend_on_its_batch(tmp_path):
    name = save_classifier(tmp_path / "model", kind="fnet", type_vocab_size=2)
    task = load("glue/sst2", data=write(tmp_path, sentence=[f"{'good ' * (i % 9)}film" for i in range(40)]), model=name)
    assert list(task.test.inputs) == ["input_ids", "token_type_ids"]
    model = loading.open_model(name, task)
    alone = torch.cat([forward(model, inputs) for inputs, _ in task.test.batches(1)])
    torch.testing.assert_close(forward(model, task.example(40)), alone)
    export(model, task.example(4), tmp_path / "model.onnx")


DECODERS = {"gpt2": {}, "llama": {"num_key_value_heads": 2}, "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32}}


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("padding", [None, 7])
def test_a_decoder_ends_a_text_where_the_padding_of_its_tokenizer_begins(tmp_path, kind, padding):
    name = save_classifier(tmp_path / "model", kind=kind, **DECODERS[kind] | {"pad_token_id": padding})
    task = load("glue/sst2", data=write(tmp_path, sentence=[f"{'good ' * (i % 9)}film" for i in range(40)]), model=name)
    model = loading.open_model(name, task)
    alone = torch.cat([forward(model, inputs) for inputs, _ in task.test.batches(1)])
    torch.testing.assert_close(forward(model, task.example(40)), alone)
    storage.save(model, tmp_path / "stored", {"model": name})
    torch.testing.assert_close(forward(storage.load(tmp_path / "stored"), task.example(40)), alone)


def test_padding_that_a_model_would_take_for_text_is_refused(tmp_path):
    sentences = [f"{'good ' * (i % 9)}film" for i in range(40)]
    task = load("glue/sst2", data=write(tmp_path, sentence=sentences), model=save_classifier(tmp_path / "reader"))
    positions = save_classifier(tmp_path / "positions", kind="roberta", pad_token_id=7)
    with pytest.raises(UserError, match="positions counts positions from its padding, token 7, .* with token 0"):
        loading.open_model(positions, task)
    short = save_classifier(tmp_path / "short", words=[*VOCABULARY[1:], "[PAD]"], vocab_size=len(VOCABULARY) - 1)
    with pytest.raises(UserError, match="short has no embedding for the padding of its tokenizer, token 54 of 54"):
        loading.open_model(short, load("glue/sst2", data=str(tmp_path), model=short))


def test_a_model_that_reads_its_answer_off_the_padding_is_refused(tmp_path):
    sentences = [f"{'good ' * (i % 9)}film" for i in range(40)]
    task = load("glue/sst2", data=write(tmp_path, sentence=sentences), model=save_classifier(tmp_path / "reader"))
    size = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "vocab_size": len(VOCABULARY)}
    torch.manual_seed(0)
    XLNetForSequenceClassification(XLNetConfig(**size)).save_pretrained(tmp_path / "left")
    with pytest.raises(UserError, match="left answers a text otherwise when it is padded .by .* as glue/sst2 pads it"):
        loading.open_model(str(tmp_path / "left"), task)
    decoder = GPT2ForSequenceClassification(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=len(VOCABULARY), pad_token_id=7)
    )
    with pytest.raises(UserError, match="otherwise when it is padded .*pad_token_id=7"):
        loading.require_fit(decoder, task, "decoder")


def test_token_types_that_a_model_has_no_embeddings_for_are_left_out(tmp_path):
    name = save_classifier(tmp_path / "model", kind="roberta", type_vocab_size=1)
    task = load("glue/rte", data=write(tmp_path, "rte"), model=name)
    assert set(task.test.inputs) == {"input_ids", "attention_mask"}
    loading.open_model(name, task)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"sentence": [*SENTENCES[:-1], None]}, "has no sentence in 1 of its rows .the first is row 39"),
        ({"sentence": list(range(40))}, "The column sentence of .*train.parquet holds int64 values; it needs texts"),
        ({"sentence": [None] * 40}, "has no sentence in 40 of its rows"),
        ({"sentence": [["a", "list"]] * 40}, "holds list<.*> values; it needs texts"),
        ({"sentence": SENTENCES[:1], "label": [1]}, "train.parquet holds one example; two or more"),
        ({"sentence": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, "train.parquet holds no examples"),
        ({"label": ["good"] * 40}, "good is none of negative, positive"),
        ({"label": ["-1"] * 40}, "-1 is none of negative, positive"),
        ({"label": [0.5] * 40}, "labels outside 0 to 1"),
        ({"label": [[1]] * 40}, "labels outside 0 to 1"),
    ],
)
def test_what_is_no_text_or_no_label_is_refused_with_its_file(tmp_path, columns, said):
    name = save_classifier(tmp_path / "model")
    with pytest.raises(UserError, match=said):
        load("glue/sst2", data=write(tmp_path, **columns), model=name)


def test_an_empty_test_split_is_refused(tmp_path):
    write(tmp_path)
    empty = {"sentence": pa.array([], pa.string()), "label": pa.array([], pa.int64())}
    write_parquet(tmp_path / "validation.parquet", empty)
    with pytest.raises(UserError, match=r"validation.parquet holds no examples"):
        load("glue/sst2", data=str(tmp_path), model=save_classifier(tmp_path / "model"))


@pytest.mark.parametrize(
    "labels",
    [
        [str(i) for i in LABELS],
        [float(i) for i in LABELS],
        [bool(i) for i in LABELS],
        [("Negative", "POSITIVE")[i] for i in LABELS],
        pa.array([("negative", "positive")[i] for i in LABELS]).dictionary_encode(),
    ],
)
def test_labels_of_any_type_are_the_same_classes(tmp_path, labels):
    name = save_classifier(tmp_path / "model")
    usual = load("glue/sst2", data=write(tmp_path / "usual"), model=name)
    assert load("glue/sst2", data=write(tmp_path / "other", label=labels), model=name).digest == usual.digest


def test_a_file_that_names_the_classes_in_another_order_is_read_by_these_names(tmp_path):
    name = save_classifier(tmp_path / "model")
    usual = load("glue/sst2", data=write(tmp_path / "usual"), model=name)
    turned = write(tmp_path / "turned", classes=("positive", "negative"), label=[1 - i for i in LABELS])
    assert load("glue/sst2", data=turned, model=name).digest == usual.digest


@pytest.mark.parametrize(
    "labels",
    [[-1.0] * 40, [math.nan] * 3 + [1.0] * 37, [str(i % 6) for i in range(40)], [5.5] * 40, [math.inf] * 40],
)
def test_a_similarity_that_is_no_number_from_0_to_5_is_refused(tmp_path, labels):
    name = save_classifier(tmp_path / "model", labels=["LABEL_0"])
    with pytest.raises(UserError, match=r"train.parquet has the label .* in row \d+; it needs a number from 0 to 5"):
        load("glue/stsb", data=write(tmp_path, "stsb", label=labels), model=name)


def test_a_limit_of_one_example_is_a_task(tmp_path):
    name = save_classifier(tmp_path / "model")
    task = load("glue/sst2", data=write(tmp_path), model=name, limit=1)
    assert forward(loading.open_model(name, task), task.example(4)).shape == (4, 2)
    digits = load("digits", limit=1)
    assert forward(loading.open_model("mlp", digits), digits.example(2)).shape == (2, 10)


def test_a_stored_model_of_another_normalization_is_refused(tmp_path):
    usual, other = load("digits", limit=9), load("digits", limit=9, mean=(0.5,), std=(0.5,))
    storage.save(models.build("mlp", other), tmp_path, {"normalization": other.normalization.described()})
    loading.open_model(str(tmp_path), other)
    with pytest.raises(UserError, match="normalized with mean=0.5 and std=0.5; give these to digits"):
        loading.open_model(str(tmp_path), usual)
