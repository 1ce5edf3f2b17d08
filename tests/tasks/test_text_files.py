"""Own data without code: files as people have them, and one sentence for what cannot be learned from."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from compression import models
from compression.errors import UserError
from compression.nn.inputs import forward
from compression.tasks import load, short_name, text_files
from compression.tasks.vocabulary import word_tokenizer
from tests.models.pretrained import save_classifier
from tests.models.tiny_bert import save_bert
from tests.tasks.data_files import write_parquet

WORDS = ("good", "bad")
ROWS = [{"text": f"a {WORDS[i % 2]} film, number {i}", "label": ("yes", "no")[i % 2]} for i in range(40)]


def write_csv(file, rows, delimiter=",", encoding="utf-8"):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding=encoding) as opened:
        writer = csv.DictWriter(opened, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return file


def write(file, rows):
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        write_csv(file, rows, "\t" if file.suffix == ".tsv" else ",")
    return file


def load_text(path, name="text", model="lstm", **given):
    return load(name, data=str(path), model=model, **given)


def texts_of(split, task):
    return [task.tokenizer.decode(ids, skip_special_tokens=True) for ids in split.inputs["input_ids"].long()]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_type_of_file_gives_the_same_task(tmp_path, suffix):
    reference = load_text(write(tmp_path / "reference.csv", ROWS))
    task = load_text(write(tmp_path / f"data.{suffix}", ROWS))
    assert task.digest == reference.digest
    assert task.name == "text/data"
    assert (task.labels, task.metric, task.outputs) == (("no", "yes"), "accuracy", 2)
    assert [len(split) for split in task.splits().values()] == [33, 3, 4]


def test_labels_stay_with_their_texts(tmp_path):
    task = load_text(write(tmp_path / "data.csv", ROWS))
    for split in task.splits().values():
        for text, target in zip(texts_of(split, task), split.targets, strict=True):
            assert ("good" in text) == (task.labels[target] == "yes")


def test_no_example_is_in_two_splits_or_lost():
    sizes = {"": 40}, {"train": 40}, {"train": 40, "test": 12}, {"train": 40, "validation": 12}
    for given in (*sizes, {"train": 40, "validation": 12, "test": 11}):
        rows, _ = text_files.choose_rows(given, "file")
        used = sorted((source, row) for source, chosen in rows.values() for row in chosen)
        assert used == sorted((source, row) for source, size in given.items() for row in range(size))


def test_a_model_trains_on_it_and_both_metrics_are_there(tmp_path):
    task = load_text(write(tmp_path / "data.csv", ROWS))
    logits = forward(models.build("lstm", task).eval(), task.example(4))
    assert logits.shape == (4, 2)
    assert set(task.compute_metrics(logits.detach(), task.test.targets)) == {"accuracy", "f1"}


def test_a_pretrained_model_reads_with_its_own_tokenizer(tmp_path):
    bert = save_bert(tmp_path / "bert")
    task = load_text(write(tmp_path / "data.csv", ROWS), model=bert)
    assert forward(models.build(bert, task).eval(), task.example(2)).shape == (2, 2)
    assert task.training["learning_rate"] == 2e-5


def test_a_pretrained_model_is_refused_where_texts_are_encoded_for_the_labs_own(tmp_path):
    task = load_text(write(tmp_path / "data.csv", ROWS))
    with pytest.raises(UserError, match="reads the tokens of its own tokenizer.*give model="):
        models.build(save_bert(tmp_path / "bert"), task)


def test_whole_numbers_are_classes_in_the_order_of_numbers(tmp_path):
    rows = [{"review": f"film {i}", "stars": (10, 9, 2, 1)[i % 4]} for i in range(40)]
    for file in ("data.csv", "data.jsonl", "data.parquet"):
        task = load_text(write(tmp_path / file, rows))
        assert task.labels == ("1", "2", "9", "10")
        assert "labels from stars, 4 classes (1, 2, 9, 10)" in task.description


def test_whole_numbers_that_pandas_wrote_as_floats_are_classes(tmp_path):
    task = load_text(write(tmp_path / "data.csv", [{"text": f"film {i}", "label": f"{i % 2}.0"} for i in range(40)]))
    assert task.labels == ("0", "1")


def test_numbers_with_fractions_and_whole_ones_on_demand_are_a_regression(tmp_path):
    rows = [{"text": f"film {i}", "score": i % 7 / 2} for i in range(40)]
    task = load_text(write(tmp_path / "data.csv", rows))
    assert (task.labels, task.outputs, task.metric) == ((), 1, "pearson")
    assert task.train.targets.dtype == torch.float32
    stars = [{"text": f"film {i}", "stars": i % 5} for i in range(40)]
    task = load_text(write(tmp_path / "stars.csv", stars), "text/regression")
    assert (task.outputs, task.name) == (1, "text/regression/stars")


def test_a_pair_of_texts_is_found_and_given_columns_are_taken(tmp_path):
    rows = [{"Premise": f"it is {i}", "Hypothesis": f"it was {i}", "label": i % 2} for i in range(40)]
    task = load_text(write(tmp_path / "nli.csv", rows))
    assert "it is" in texts_of(task.train, task)[0]
    assert "it was" in texts_of(task.train, task)[0]
    odd = [{"headline": f"film {i}", "notes": "x", "kind": "ab"[i % 2], "label": "?"} for i in range(40)]
    task = load_text(write(tmp_path / "odd.csv", odd), text_columns=["headline"], label_column="kind")
    assert task.labels == ("a", "b")
    assert "film" in texts_of(task.train, task)[0]


@pytest.mark.parametrize(
    ("files", "sizes", "said"),
    [
        (["train.csv"], [33, 3, 4], "validation and test cut from train"),
        (["train.csv", "test.csv"], [36, 4, 40], "validation cut from train"),
        (["train.csv", "dev.csv"], [36, 4, 40], "the validation file is the test split"),
        (["train.csv", "valid.csv", "test.csv"], [40, 40, 40], "splits as given"),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], [65, 7, 8], ""),
        (["train/a.jsonl", "test/a.jsonl"], [36, 4, 40], ""),
        (["my_train.tsv", "my_test.tsv", "readme.txt"], [36, 4, 40], ""),
        (["reviews.csv", "notes.md"], [33, 3, 4], ""),
    ],
)
def test_files_of_a_folder_are_splits_by_their_names(tmp_path, files, sizes, said):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, ROWS) if name.rpartition(".")[2] not in ("txt", "md") else (tmp_path / name).touch()
    task = load_text(tmp_path)
    assert [len(split) for split in task.splits().values()] == sizes
    assert said in task.description


def test_a_test_file_without_labels_is_told_and_left_out(tmp_path):
    for hidden in ([{"text": r["text"]} for r in ROWS], [r | {"label": -1} for r in ROWS]):
        write(tmp_path / "train.csv", [r | {"label": i % 2} for i, r in enumerate(ROWS)])
        write(tmp_path / "validation.csv", [r | {"label": i % 2} for i, r in enumerate(ROWS[:20])])
        write(tmp_path / "test.csv", hidden)
        task = load_text(tmp_path)
        assert len(task.test) == 20
        assert "the test file has no labels" in task.description


def test_minus_one_is_a_class_where_the_training_data_has_it(tmp_path):
    rows = [r | {"label": (-1, 1)[i % 2]} for i, r in enumerate(ROWS)]
    write(tmp_path / "train.csv", rows)
    write(tmp_path / "test.csv", [r for r in rows if r["label"] == -1])
    assert len(load_text(tmp_path).test) == 20


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_csv_file_with_another_delimiter_is_read(tmp_path, delimiter):
    reference = load_text(write(tmp_path / "reference.csv", ROWS))
    assert load_text(write_csv(tmp_path / "data.csv", ROWS, delimiter)).digest == reference.digest


def test_quotes_line_breaks_and_byte_order_marks_are_read(tmp_path):
    rows = [r | {"text": f'he said "{r["text"]}",\nand\u2028left'} for r in ROWS]
    plain = load_text(write(tmp_path / "reference.parquet", rows))
    assert load_text(write_csv(tmp_path / "data.csv", rows, encoding="utf-8-sig")).digest == plain.digest
    lines = (tmp_path / "data.csv").read_bytes().replace(b"\r\n", b"\n")
    (tmp_path / "unix.csv").write_bytes(lines)
    assert load_text(tmp_path / "unix.csv").digest == plain.digest


def test_a_quote_in_a_tsv_file_swallows_no_lines(tmp_path):
    lines = [('"' if i % 3 == 0 else "") + f"film {i}\t{i % 2}" for i in range(40)]
    (tmp_path / "data.tsv").write_text("\n".join(["text\tlabel", *lines]))
    assert sum(len(split) for split in load_text(tmp_path / "data.tsv").splits().values()) == 40


def test_class_names_of_the_hubs_metadata_are_taken(tmp_path):
    file = write_parquet(
        tmp_path / "train.parquet",
        {"text": [f"film {i}" for i in range(40)], "label": [i % 2 for i in range(40)]},
        ("zebra", "ant"),
    )
    assert load_text(file).labels == ("zebra", "ant")


def test_a_limit_cuts_every_split_and_the_splits_begin_alike(tmp_path):
    file = write(tmp_path / "data.csv", ROWS)
    whole, cut = load_text(file), load_text(file, limit=2)
    assert [len(split) for split in cut.splits().values()] == [2, 2, 2]
    assert cut.is_limited
    assert cut.labels == whole.labels
    assert torch.equal(cut.test.targets, whole.test.targets[:2])


def test_texts_that_are_cut_are_told(tmp_path):
    rows = [r | {"text": r["text"] + " very" * 200} for r in ROWS]
    assert "100% of the texts are cut to 128 tokens" in load_text(write(tmp_path / "data.csv", rows)).description


@pytest.mark.parametrize(("kind", "size", "length"), [("fnet", {}, 128), ("bert", {"max_position_embeddings": 12}, 12)])
def test_texts_that_are_cut_for_another_model_are_told_too(tmp_path, kind, size, length):
    name = save_classifier(tmp_path / kind, kind=kind, type_vocab_size=2, **size)  # FNet takes no attention mask
    rows = [r | {"text": "good " * (200 if i % 2 else 3)} for i, r in enumerate(ROWS)]
    task = load_text(write(tmp_path / "data.csv", rows), model=name)
    assert f"50% of the texts are cut to {length} tokens" in task.description


def test_one_column_is_no_pair(tmp_path):
    with pytest.raises(UserError, match="text_columns=text/text names one column twice"):
        load_text(write(tmp_path / "data.csv", ROWS), text_columns=("text", "text"))


@pytest.mark.parametrize(
    "given", [{"text_columns": ("other",)}, {"label_column": "kind"}, {"text_columns": ("text", "other")}]
)
def test_other_columns_are_other_data_to_a_baseline(tmp_path, given):
    rows = [r | {"other": f"{r['text']} indeed", "kind": ("up", "down")[i % 3 == 0]} for i, r in enumerate(ROWS)]
    file = write(tmp_path / "data.csv", rows)
    usual = load_text(file, text_columns=("text",), label_column="label")
    assert load_text(file, **({"text_columns": ("text",), "label_column": "label"} | given)).digest != usual.digest


def test_the_vocabulary_is_the_same_whatever_the_order_of_texts():
    texts = [r["text"] for r in ROWS]
    assert word_tokenizer(texts).fingerprint() == word_tokenizer(reversed(texts)).fingerprint()
    assert len(word_tokenizer(["电影很好看"]).tokenizer) == 5 + 5


WRONG = {
    "missing column": (
        [{"words": "a", "more": "b", "label": 1}] * 20,
        {},
        "none has a usual name of text.*text_columns",
    ),
    "given column": (ROWS, {"label_column": "stars"}, "has the columns 'text', 'label', and no 'stars'"),
    "no label": ([{"text": "a", "outcome": 1}] * 20, {}, "usual name of labels.*label_column=NAME"),
    "two labels": ([r | {"sentiment": 1} for r in ROWS], {}, "'label', 'sentiment' could all be the labels"),
    "two texts": ([r | {"review": "b"} for r in ROWS], {}, "could be text or review.*text_columns"),
    "three texts": (ROWS, {"text_columns": ["text", "text", "text"]}, "names 3 columns"),
    "one class": ([r | {"label": "yes"} for r in ROWS], {}, "are all 'yes'; there is nothing to learn"),
    "thousands": ([{"text": f"t {i}", "label": f"c{i}"} for i in range(3000)], {}, "3000 classes in 3000 examples"),
    "few": (ROWS[:6], {}, "6 examples to train on; a task takes 10 or more"),
    "empty label": ([*ROWS, {"text": "x", "label": ""}], {}, "1 examples lack a label.*the first is number 41"),
    "nan label": ([*ROWS, {"text": "x", "label": "NaN"}], {}, "1 examples lack a label"),
    "empty text": (
        [*ROWS, {"text": " ", "label": "no"}],
        {},
        "1 examples have no text in 'text', the first is number 41",
    ),
    "infinite": ([{"text": f"t {i}", "label": i / 4 if i else float("inf")} for i in range(40)], {}, "inf"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_what_cannot_be_learned_from_is_refused_in_a_sentence(tmp_path, case, suffix):
    rows, given, said = WRONG[case]
    with pytest.raises(UserError, match=f"data.{suffix}.*{said}" if "names" not in said else said) as refusal:
        load_text(write(tmp_path / f"data.{suffix}", rows), **given)
    assert "\n" not in str(refusal.value)


BYTES = {
    "empty": ("data.csv", b"", "is empty"),
    "header alone": ("data.csv", b"text,label\n", "holds no examples"),
    "latin1": ("data.csv", "text,label\ncafé,1\n".encode("latin-1"), "is not UTF-8 text \\(byte 0xe9 in line 2"),
    "utf16": ("data.csv", "text,label\n".encode("utf-16"), "is not UTF-8 text"),
    "ragged": ("data.csv", b"text,label\na, b,1\n", "row 2 has 3 fields and the first row 2"),
    "open quote": ("data.csv", b'text,label\n"a,1\nb,0\n', "is not an intact csv file"),
    "twice": ("data.csv", b"text,label,label\na,1,1\n", "two columns named 'label'"),
    "no json": ("data.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', "is not JSON.*line 2"),
    "numbers": ("data.json", b"[1, 2]", "an object for each example"),
    "mixed": ("data.jsonl", b'{"text": "a", "label": 1}\n{"text": "b", "label": "c"}\n', "different types"),
    "no parquet": ("data.parquet", b"PAR1 not", "is not an intact parquet file"),
    "unknown": ("data.xlsx", b"PK", "of an unknown type"),
}


@pytest.mark.parametrize("case", BYTES)
def test_a_file_that_cannot_be_read_is_refused_in_a_sentence(tmp_path, case):
    name, content, said = BYTES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.*{said}") as refusal:
        load_text(tmp_path / name)
    assert "\n" not in str(refusal.value)


def test_a_column_of_numbers_is_no_text(tmp_path):
    rows = [{"text": i, "label": i % 2} for i in range(40)]
    with pytest.raises(UserError, match="'text' holds int64, not text"):
        load_text(write(tmp_path / "data.parquet", rows))


def test_truth_values_are_classes(tmp_path):
    rows = [r | {"label": i % 2 == 0} for i, r in enumerate(ROWS)]
    for file in ("data.csv", "data.jsonl", "data.parquet"):
        assert load_text(write(tmp_path / file, rows)).labels == ("False", "True")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train.csv": ROWS, "test.csv": [{"review": "a", "label": "no"}]}, "test.csv has no column 'text'"),
        (
            {"train.csv": ROWS, "test.csv": [r | {"label": "may be"} for r in ROWS]},
            "without 'may be', which the test split has",
        ),
        ({"train.csv": ROWS, "train.jsonl": ROWS}, "more than one train split"),
        ({"a/train.csv": ROWS, "b/train.csv": ROWS}, "more than one train split"),
        ({"train-00000-of-00002.csv": ROWS}, "lacks files of its train split"),
        ({"one.csv": ROWS, "two.csv": ROWS}, "No file in .* is named train"),
        ({"test.csv": ROWS}, "No file in .* is named train"),
        ({}, "holds no .csv, .tsv"),
    ],
)
def test_folders_of_files_that_do_not_fit_together_are_refused(tmp_path, files, said):
    for name, rows in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, rows)
    with pytest.raises(UserError, match=said):
        load_text(tmp_path)


def test_data_has_to_be_given_and_to_be_there(tmp_path):
    with pytest.raises(UserError, match="text needs data=PATH: a CSV, TSV, JSONL or parquet file"):
        load("text")
    with pytest.raises(UserError, match="no file or folder data=.*nowhere"):
        load_text(tmp_path / "nowhere")
    with pytest.raises(UserError, match="are for text and hub/NAME; digits has its own columns"):
        load("digits", label_column="x")
    with pytest.raises(UserError, match=r"reviews.csv is data, and not a task: give task=text and data=reviews.csv"):
        load("reviews.csv")


def test_the_root_of_all_data_may_hold_the_text(tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    write(tmp_path / "text/mine.csv", ROWS)
    monkeypatch.setenv("COMPRESSION_DATA", str(tmp_path))
    assert load("text", model="lstm").name == "text" == short_name("text")
