"""Text for language models: what is predicted from what, how well it is counted, and what is refused."""

import json
import math
import os
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from compression import models
from compression.errors import UserError
from compression.nn.inputs import IGNORED
from compression.tasks import load, metrics, short_name
from compression.tasks.scores import TokenLikelihood
from compression.tasks.task import evaluate, predict
from compression.tasks.vocabulary import byte_pairs, corpus_words
from tests.methods.tiny_language import CONTEXT, TOKENS, language_task, tiny_decoder
from tests.models.pretrained import tokenizer
from tests.models.tiny_bert import save_bert
from tests.tasks.data_files import write_parquet

LINES = [f"the {word} of number {i} is not the {word} of {i + 1}" for i in range(60) for word in ("king", "queen")]
TEXT = "\n".join(LINES)
UNSEEN = "Ærø: 漢字仮名交じり文、мир и 平和🙂\n"
MIXED = "Grüße aus Köln, wo große Bäume blühen. 你好，世界！今天天气很好。 plain words\n"


def write(path, text=TEXT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def three_texts(folder, train, validation, test):
    for name, text in {"train": train, "valid": validation, "test": test}.items():
        write(folder / f"{name}.txt", text)
    return folder


def load_language(path, model="decoder", context=16, **given):
    return load("language", data=str(path), model=model, context=context, **given)


def text_of(split, task):
    ids = split.inputs["input_ids"].flatten().long()
    return "".join(task.tokenizer.convert_ids_to_tokens(ids.tolist())).replace("Ġ", " ").replace("Ċ", "\n")


def save_decoder(folder, words, positions=32, pad="[PAD]"):
    """Save a tiny Llama with its tokenizer as the hub's libraries save one; the folder's name."""
    torch.manual_seed(0)
    tiny_decoder(vocab_size=len(words), max_position_embeddings=positions).save_pretrained(folder)
    made = tokenizer(words)
    made.pad_token = pad
    made.save_pretrained(folder)
    return str(folder)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "king", "queen", "of", "number", "is", "not"]


# What is predicted


def test_each_token_is_the_target_of_the_one_before_it_and_the_last_of_a_window_has_none(tmp_path):
    folder = three_texts(tmp_path / "mine", "a b c a b a\n", "a c a", "b b c a a")
    task = load_language(folder, "lstm_lm", context=3)
    # by frequency, equally frequent ones by their code points: "\n" before "c"
    assert task.tokenizer.get_vocab() == {"<unk>": 0, "<end>": 1, "a": 2, "b": 3, "\n": 4, "c": 5}
    assert task.train.inputs["input_ids"].tolist() == [[2, 3, 5], [2, 3, 2]]  # the end of the line fills no window
    assert task.train.targets.tolist() == [[3, 5, IGNORED], [3, 2, IGNORED]]
    assert task.test.inputs["input_ids"].tolist() == [[3, 3, 5]]
    assert (task.outputs, task.predicts_tokens, task.metric, task.higher_is_better) == (6, True, "perplexity", False)


def test_windows_follow_one_another_and_lose_no_token_but_the_last_few(tmp_path):
    task = load_language(write(tmp_path / "mine.txt"))
    for name, split in task.splits().items():
        assert split.inputs["input_ids"].shape[1] == 16, name
    whole = "".join(text_of(split, task) for split in task.splits().values())
    assert whole[: len(text_of(task.train, task))] == TEXT[: len(text_of(task.train, task))]
    for split in task.splits().values():
        assert text_of(split, task) in TEXT


def test_limit_and_context_take_fewer_and_shorter_windows(tmp_path):
    file = write(tmp_path / "mine.txt")
    whole, few = load_language(file), load_language(file, limit=2)
    assert [len(split) for split in few.splits().values()] == [2, 2, 2]
    assert few.is_limited
    assert torch.equal(few.train.inputs["input_ids"], whole.train.inputs["input_ids"][:2])
    assert 0 < few.test.text_bytes < whole.test.text_bytes
    assert load_language(file, context=8).train.targets.shape[1] == 8


# How it is counted


def test_perplexity_and_bits_are_those_worked_by_hand():
    scores = TokenLikelihood(text_bytes=5)
    # Two tokens of a half and an eighth: 1 and 3 bits, 4 together; the perplexity is the root of 2 * 8.
    scores.add(torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375]]).log(), torch.tensor([0, 0]))
    found = scores.metrics()
    assert found["perplexity"] == pytest.approx(4.0)
    assert found["bits_per_byte"] == pytest.approx(4 / 5)
    assert found["token_accuracy"] == 0.5


def test_a_guess_among_all_tokens_has_their_number_as_perplexity():
    scores = TokenLikelihood()
    scores.add(torch.zeros(10, 7), torch.arange(10) % 7)
    assert scores.metrics()["perplexity"] == pytest.approx(7.0)
    assert "guess among all 7 tokens" in scores.doubt("perplexity")
    assert "bits_per_byte" not in scores.metrics()


def test_the_streamed_perplexity_is_that_of_all_logits_at_once():
    task, model = language_task(), tiny_decoder()
    logits, targets = predict(model, task.test)
    assert logits.shape == (32 * (CONTEXT - 1), TOKENS)  # a target for all tokens of a window but its last
    streamed = task.scores(task.test)
    for part, wanted in zip(logits.split(7), targets.split(7), strict=True):
        streamed.add(part, wanted)
    expected = metrics.perplexity(logits, targets)["perplexity"]
    assert streamed.metrics()["perplexity"] == pytest.approx(expected, rel=1e-6)
    assert evaluate(model, task.test, task)["perplexity"] == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).exp().item(), rel=1e-5)


def test_a_hopeless_model_has_a_perplexity_without_an_overflow():
    scores = TokenLikelihood()
    scores.add(torch.tensor([[0.0, 1e6]]), torch.tensor([0]))
    assert scores.metrics()["perplexity"] == math.inf


@pytest.mark.parametrize(("train", "test"), [("plain words of a byte each\n", "plain words\n"), (MIXED, UNSEEN)])
def test_bits_per_byte_divide_by_the_bytes_of_the_predicted_text(tmp_path, train, test):
    folder = three_texts(tmp_path / "mine", train * 40, train * 4, test * 10)
    for split in load_language(folder, "decoder", context=8).splits().values():
        vocabulary = byte_pairs(train * 40)
        rows = [vocabulary.convert_ids_to_tokens(row.tolist()) for row in split.inputs["input_ids"]]
        # A character of such a token stands for a byte; the first token of a window is given.
        assert split.text_bytes == sum(len(token) for tokens in rows for token in tokens[1:])
    task = load_language(folder, "lstm_lm", context=8)
    for split, text in zip(task.splits().values(), (train * 40, train * 4, test * 10), strict=True):
        ends = [found.end() for found in re.finditer(r"\n|\S+", text)]  # blanks belong to the word behind them
        predicted = [text[ends[8 * i] : ends[8 * i + 7]] for i in range(len(split))]
        assert split.text_bytes == len("".join(predicted).encode())


# Where it is from


def test_a_text_without_splits_is_cut_at_its_end(tmp_path):
    file = write(tmp_path / "mine.txt")
    task = load_language(file)
    assert task.name == "language/mine.txt" == short_name("language", str(file))
    assert "validation and test cut from the end of it" in task.description
    texts = [text_of(split, task) for split in task.splits().values()]
    assert TEXT.startswith(texts[0])
    assert [TEXT.index(text) for text in texts] == sorted(TEXT.index(text) for text in texts)
    assert TEXT.index(texts[2]) >= len(TEXT) * 9 // 10
    assert all(TEXT[TEXT.index(text) - 1] == "\n" for text in texts[1:])  # at the end of a line


def test_a_path_in_the_name_is_the_same_as_data(tmp_path):
    file = write(tmp_path / "mine.txt")
    named = load(f"language/{file}", model="decoder", context=16)
    assert (named.digest, named.name) == (load_language(file).digest, "language/mine.txt")


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_every_type_of_file_gives_the_same_text(tmp_path, suffix):
    paragraphs = LINES
    file = tmp_path / f"mine.{suffix}"
    if suffix == "txt":
        file.write_text("\n\n".join(paragraphs))
    elif suffix == "jsonl":
        file.write_text("\n".join(json.dumps({"text": line, "number": i}) for i, line in enumerate(paragraphs)))
    else:
        pq.write_table(pa.table({"text": paragraphs, "number": list(range(len(paragraphs)))}), file)
    reference = load_language(write(tmp_path / "reference.txt", "\n\n".join(paragraphs)))
    assert load_language(file).digest == reference.digest


def test_a_column_is_named_where_several_could_be_the_text(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps({"one": line, "two": "x"}) for line in LINES))
    with pytest.raises(UserError, match=r"has the columns one, two; name the one with the text: text_columns=NAME"):
        load_language(file)
    assert load_language(file, text_columns=("one",)).outputs > 256


@pytest.mark.parametrize("layout", ["files", "folders"])
def test_a_folder_has_its_splits_by_their_names(tmp_path, layout):
    texts = {"train": TEXT, "valid": "a queen of number 7\n" * 9, "test": "a king of number 8\n" * 9}
    for name, text in texts.items():
        write(tmp_path / "mine" / (f"{name}.txt" if layout == "files" else f"{name}/part.txt"), text)
    task = load_language(tmp_path / "mine")
    assert "splits as given" in task.description
    assert text_of(task.validation, task) in texts["valid"]
    assert text_of(task.test, task) in texts["test"]
    assert len(task.train) > 3 * len(task.test)


def test_files_that_name_no_split_are_joined_and_cut(tmp_path):
    write(tmp_path / "mine" / "a.txt", "\n".join(LINES[:60]))
    write(tmp_path / "mine" / "b.md", "\n".join(LINES[60:]))
    joined = "\n".join(LINES[:60]) + "\n\n" + "\n".join(LINES[60:])
    assert load_language(tmp_path / "mine").digest == load_language(write(tmp_path / "joined.txt", joined)).digest


def test_wikitext_without_a_training_file_trains_on_the_start_of_its_validation_text(tmp_path):
    folder = tmp_path / "data" / "wikitext" / "wikitext-2-v1"
    folder.mkdir(parents=True)
    # As on the hub, a line is a row, with its end.
    for split, lines in {"validation": LINES, "test": LINES[:40]}.items():
        pq.write_table(pa.table({"text": [f" {line} \n" for line in lines]}), folder / f"{split}-0.parquet")
    task = load("language/wikitext2", data=str(tmp_path / "data" / "wikitext"), model="decoder", context=16)
    assert task.name == "language/wikitext2"
    assert "validation cut from the end of validation, as there is no training text" in task.description
    assert len(task.train) > 5 * len(task.validation)
    assert text_of(task.test, task).startswith(f" {LINES[0]} \n")


def test_the_digest_is_the_same_in_two_loads_and_in_two_processes(tmp_path):
    file = write(tmp_path / "mine.txt", TEXT + MIXED * 20)
    program = (
        "import sys; from compression.tasks import load\n"
        "for model in ('decoder', 'lstm_lm'):\n"
        "    print(load('language', data=sys.argv[1], model=model, context=16).digest)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(file)],
        env={**os.environ, "PYTHONHASHSEED": "1", "COMPRESSION_CACHE": str(tmp_path / "other")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    own = [load_language(file, model).digest for model in ("decoder", "lstm_lm") for _ in range(2)]
    assert said == f"{own[0]}\n{own[2]}\n"
    assert own[0] == own[1] != own[2] == own[3]


def test_the_bytes_tokenizer_loses_nothing_and_the_words_tokenizer_knows_the_unknown():
    assert byte_pairs(TEXT).decode(byte_pairs(TEXT)(MIXED)["input_ids"]) == MIXED
    words = corpus_words("a b a\n")
    assert words("a never\n")["input_ids"] == [2, 0, words.get_vocab()["\n"]]


def test_a_model_of_transformers_reads_its_own_tokens_in_as_many_positions_as_it_has(tmp_path):
    folder = save_decoder(tmp_path / "llama", WORDS, positions=24)
    task = load("language", data=str(write(tmp_path / "mine.txt")), model=folder)
    assert (task.outputs, task.train.targets.shape[1]) == (len(WORDS), 24)
    assert models.build(folder, task).eval()(**task.example(2)).logits.shape == (2, 24, len(WORDS))


# What is refused


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """Where things are, by name: texts and models."""
    root = tmp_path_factory.mktemp("at")
    llama, other = save_decoder(root / "llama", WORDS, positions=24), save_decoder(root / "other", WORDS)
    tokenizer(WORDS[:5]).save_pretrained(other)
    latin = root / "latin.txt"
    latin.write_bytes("Grüße\n".encode("latin-1") * 50)
    return {
        "llama": llama,
        "other": other,
        "bert": save_bert(root / "bert"),
        "classifier": save_bert(root / "classifier", classes=2),
        "text": str(write(root / "mine.txt")),
        "line": str(write(root / "line.txt", "one line\n")),
        "empty": str(write(root / "empty.txt", " \n")),
        "docx": str(write(root / "mine.docx")),
        "latin": str(latin),
        "gone": str(root / "gone.txt"),
    }


ON_TEXT = {"name": "language", "data": "text"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ON_TEXT | {"model": "llama", "context": 25},
            "context=25 is longer than the 24 positions of .*; take context=24",
        ),
        (ON_TEXT | {"context": 512}, r"The \w+ text of .*mine.txt has \d+ tokens, less than one window of 512"),
        (ON_TEXT | {"data": "line", "context": 16}, r"text of .*line.txt has \d tokens, less than one window of 16"),
        (ON_TEXT | {"data": "empty"}, "The text of .*empty.txt is empty"),
        (ON_TEXT | {"data": "latin"}, "latin.txt is not UTF-8 text"),
        (ON_TEXT | {"data": "docx"}, "mine.docx is of an unknown type; text is .txt, "),
        (ON_TEXT | {"data": "gone"}, "There is no text .*gone.txt: give a file or folder"),
        ({"name": "language/gone.txt"}, "There is no text gone.txt: give a file or folder"),
        ({"name": "language"}, "language needs data=PATH"),
        (ON_TEXT | {"name": "language/mine.txt"}, "language/mine.txt names the text, and so does data="),
        ({"name": "language/hub/wikitext"}, "names no data set: write language/hub/OWNER/NAME"),
        (ON_TEXT | {"model": "other"}, "other has no tokenizer of its own"),
        (ON_TEXT | {"model": "bert"}, r"bert \(BertModel\) does not predict the next token; choose a decoder"),
        (ON_TEXT | {"model": "classifier"}, r"\(BertForSequenceClassification\) does not predict the next token"),
        (ON_TEXT | {"label_column": "label"}, "language has no column of labels to name; leave label_column empty"),
        (ON_TEXT | {"mean": (0.5,)}, "mean and std normalize images; language has no use for them"),
        ({"name": "digits", "context": 8}, "context is the length of the windows of language models; digits has no"),
        ({"name": "text", "data": "text", "context": 8}, "context is the length of the windows of language models"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(given, said, at):
    with pytest.raises(UserError, match=said) as refused:
        load(**{field: at.get(value, value) if isinstance(value, str) else value for field, value in given.items()})
    assert "\n" not in str(refused.value)


def test_a_decoder_is_no_classifier_of_glue(tmp_path):
    data = tmp_path / "glue" / "sst2"
    for split in ("train", "validation"):
        columns = {"sentence": [f"the king {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}
        write_parquet(data / f"{split}-0.parquet", columns)
    for model, said in {
        "decoder": "There is no text model 'decoder'.*; of the lab's own, lstm is for text",
        save_decoder(tmp_path / "gpt", WORDS, pad=None): "gpt has no padding token; choose an encoder such as BERT",
    }.items():
        with pytest.raises(UserError, match=said):
            models.build(model, load("glue/sst2", data=str(data), model=model))


def test_models_of_images_and_of_language_are_not_for_one_another(tmp_path):
    language, images = load_language(write(tmp_path / "mine.txt")), load("digits")
    with pytest.raises(UserError, match=r"The model resnet18 is not for language/mine.txt; take lstm_lm, decoder"):
        models.build("resnet18", language)
    with pytest.raises(UserError, match=r"The model lstm is not for language/mine.txt; take lstm_lm, decoder"):
        models.build("lstm", language)
    with pytest.raises(UserError, match="The model decoder is not for digits; take resnet8"):
        models.build("decoder", images)


def test_a_model_with_a_tokenizer_of_its_own_does_not_read_a_text_in_that_of_the_lab(at):
    task = load_language(at["text"])
    with pytest.raises(UserError, match=r"reads the tokens of its own tokenizer.*: give model=.*llama"):
        models.build(at["llama"], task)


def test_the_command_line_refuses_with_the_same_sentence_and_fails(tmp_path, compression):
    text = str(write(tmp_path / "mine.txt"))
    words = ("evaluate", "--task", "language", "--model", "decoder", "--data")
    for more, said in {
        (text, "--context", "512"): "less than one window of 512: take more text, or a smaller context=N.",
        (str(tmp_path / "nowhere"),): "There is no text",
        (text, "--label-column", "x"): "language has no column of labels",
    }.items():
        code, _, errors = compression(*words, *more)
        assert code == 1
        assert errors.count("Error: ") == 1
        assert said in errors
        assert "Traceback" not in errors
    code, _, errors = compression("evaluate", "--task", "digits", "--model", "decoder")
    assert (code, "The model decoder is not for digits" in errors) == (1, True)
