"""Text to text and questions with options: what is read, what is predicted, how it is scored, what is refused."""

import json
import math
import random
import string

import pytest
import torch

from compression import tasks
from compression.errors import UserError
from compression.nn.inputs import IGNORED
from compression.runs.loading import open_model
from compression.tasks.scores import OptionLikelihood
from compression.tasks.task import evaluate

PAIRS = [{"source": f"{a} {b}", "target": f"{b} {a}"} for a in "abcdefg" for b in "hijk"]
ASKED = [
    {"question": f"{a} and {b}?", "choices": [str(a + b), str(a + b + 1), "none"], "answer": 0}
    for a in range(5)
    for b in range(4)
]


def written(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def pairs(tmp_path):
    return written(tmp_path / "pairs.jsonl", PAIRS)


@pytest.fixture
def questions(tmp_path):
    return written(tmp_path / "questions.jsonl", ASKED)


def test_the_tokens_of_the_target_and_its_end_are_predicted(pairs):
    task = tasks.load("text2text", data=pairs, context=32)
    row, targets = task.train.inputs["input_ids"][0].tolist(), task.train.targets[0]
    wanted = [token for token in targets.tolist() if token != IGNORED]
    source, _, target = task.tokenizer.decode(row).partition("\n=>\n")
    assert {"source": source, "target": target.partition("<end>")[0]} in PAIRS
    assert task.tokenizer.decode(wanted) == target.partition("<end>")[0] + "<end>"
    first = int((targets != IGNORED).nonzero()[0])
    assert row[first + 1] == wanted[0]  # at each place the token after it


def test_a_long_source_loses_its_beginning_and_the_target_has_half_of_the_window(tmp_path):
    draw = random.Random(0)
    noise = ["".join(draw.choices(string.ascii_letters, k=300)) for _ in range(12)]
    rows = [{"source": f"{text}last", "target": text} for text in noise]
    task = tasks.load("text2text", data=written(tmp_path / "long.jsonl", rows), context=32)
    assert task.train.inputs["input_ids"].shape[1] == 32
    assert int((task.train.targets[0] != IGNORED).sum()) >= 16
    assert "t\n=>\n" in task.tokenizer.decode(task.train.inputs["input_ids"][0])


def test_what_a_model_writes_is_scored_as_the_libraries_score_it(pairs):
    task = tasks.load("text2text", data=pairs, context=32)
    model = open_model("decoder", task)
    figures, shown = task.continuations(model)
    import sacrebleu

    expected = sacrebleu.corpus_bleu([each.written for each in shown], [[each.expected for each in shown]]).score
    assert figures["bleu"] == expected
    assert 0 <= figures["rouge_l"] <= 1
    assert len(shown) == len(task.test)
    assert {"source": shown[0].prompt, "target": shown[0].expected} in PAIRS


def test_the_likelier_option_is_chosen_as_a_whole_and_by_its_bytes():
    # Two questions of two options, of one and two tokens, and of one token each.
    targets = torch.tensor([[0, IGNORED], [1, 1], [0, IGNORED], [1, IGNORED]])
    right = torch.tensor([0, 1, 1, 0])
    scores = OptionLikelihood(torch.tensor([0, 0, 1, 1]), right, targets, torch.tensor([1, 8, 2, 2]))
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    scores.add(logits[:3], torch.tensor([0, 1, 1]))
    scores.add(logits[3:], torch.tensor([0, 1]))
    unlikely, likely = math.log(1 + math.e), math.log(1 + math.e) - 1  # nats of tokens 0 and 1
    assert unlikely > 2 * likely  # so the option of two tokens is likelier even as a whole
    assert scores.metrics() == {"accuracy": 0.5, "accuracy_by_bytes": 0.5}
    assert scores.doubt("accuracy").endswith("is at chance.")


def test_a_model_is_trained_on_right_options_and_judged_on_all(questions):
    task = tasks.load("choice", data=questions, context=32)
    assert len(task.train) == 20 - 2 - 1
    assert len(task.test) == 3 * 2
    assert int(task.test.inputs["is_right"].sum()) == 2
    found = evaluate(open_model("decoder", task), task.test, task)
    assert set(found) == {"accuracy", "accuracy_by_bytes"}
    assert found["accuracy"] in (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ({"question": "q", "A": "x", "B": "y", "answer": "B"}, 1),
        ({"question": "q", "choices": ["x", "y"], "answer": "y"}, 1),
        ({"ctx": "q", "endings": ["x", "y", "z"], "label": "2"}, 2),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"}, 0),
    ],
)
def test_usual_forms_of_questions_are_read(tmp_path, row, right):
    file = written(tmp_path / "asked.jsonl", [row | {"n": i} for i in range(12)])
    task = tasks.load("choice", data=file, context=32)
    first = task.test.inputs["question"] == 0
    assert task.test.inputs["is_right"][first].nonzero().flatten().tolist() == [right]


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        (
            "choice",
            [{"question": "q", "choices": ["x", "y"], "answer": 2}],
            "answer '2' of question 1 is none of its 2",
        ),
        ("choice", [{"question": "q", "choices": ["x"], "answer": 0}], "question 1 has to have two options or more"),
        ("choice", [{"question": "q", "answer": 0}], "none of options, choices"),
        ("text2text", [{"source": "a", "other": "b"}], "text_columns=SOURCE/TARGET"),
        ("text2text", [{"source": "a", "target": ""}], "1 pairs lack a text, the first is number 1"),
        ("text2text", [{"source": "a", "target": "b"}], "holds 1 examples to train on"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, name, rows, message):
    with pytest.raises(UserError, match=message):
        tasks.load(name, data=written(tmp_path / "rows.jsonl", rows))


@pytest.mark.parametrize("name", ["text2text", "choice", "language"])
def test_a_task_without_its_file_says_so(name):
    with pytest.raises(UserError, match=f"{name} needs data=PATH"):
        tasks.load(name)
