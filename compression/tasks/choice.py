"""Questions with options: a language model chooses the option that it thinks likeliest, without training for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compression.errors import UserError
from compression.tasks import metrics
from compression.tasks.decoding import Reader, continued, load_reader, make_task, place_of, window_length
from compression.tasks.scores import OptionLikelihood
from compression.tasks.table_files import find_files, read_table
from compression.tasks.task import Split, Task
from compression.tasks.text_files import choose_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from compression.nn.inputs import Inputs
    from compression.tasks import TaskRequest

QUESTIONS = ("question", "query", "prompt", "sentence", "ctx", "context", "text")
OPTIONS = ("options", "choices", "endings", "answers")
ANSWERS = ("answer", "label", "gold", "answer_key", "answerkey", "target")
BEFORE_OPTION = "\nAnswer:"


@dataclass(frozen=True)
class Question:
    """A question, its options, and the number of the right one."""

    text: str
    options: tuple[str, ...]
    right: int


def choice(request: TaskRequest) -> Task:
    """Load the questions in `data=PATH`, or of `choice/PATH`: CSV, TSV, JSON, JSONL or parquet.

    Each option is an example: the question, `Answer:`, and the option, whose tokens are predicted. Training sees the
    right options alone. Raises UserError for data that cannot be found or read, and a tokenizer that cannot be loaded.
    """
    place = place_of(request, "choice", "a file of questions, their options and the right answer")
    questions, told = _read_splits(Path(place))
    reader = load_reader(
        request.model, "".join(f"{q.text}{BEFORE_OPTION} {o}\n" for q in questions["train"] for o in q.options)
    )
    context = window_length(request, reader)
    splits = {
        name: _encode(asked[: request.limit], reader, context, right_alone=name == "train")
        for name, asked in questions.items()
    }
    sizes = ", ".join(f"{len(asked[: request.limit])} {name}" for name, asked in questions.items())
    judged = {"metric": "accuracy", "higher_is_better": True, "compute_metrics": metrics.accuracy}
    return make_task(request, reader, splits, place, f"{sizes} questions; {told}", make_scores=_scores, **judged)


def _scores(split: Split) -> OptionLikelihood:
    inputs = split.inputs
    assert isinstance(inputs, dict)
    question, is_right, option_bytes = (inputs[name].cpu() for name in ("question", "is_right", "option_bytes"))
    return OptionLikelihood(question, is_right, split.targets.cpu(), option_bytes)


def _read_splits(path: Path) -> tuple[dict[str, list[Question]], str]:
    """Return the questions of train, validation and test, and how they were made. Raises UserError."""
    read = {
        split: [question for file in files for question in _questions(file)]
        for split, files in find_files(path).items()
    }
    rows, told = choose_rows({split: len(questions) for split, questions in read.items()}, path)
    return {name: [read[split][i] for i in taken] for name, (split, taken) in rows.items()}, told


def _questions(file: Path) -> list[Question]:
    table = read_table(file)
    names = {name.lower(): name for name in table.column_names}
    question, answer = _column(file, names, QUESTIONS), _column(file, names, ANSWERS)
    lettered = [names[letter] for letter in "abcdefgh" if letter in names]
    options = [] if len(lettered) > 1 else [_column(file, names, OPTIONS)]
    return [
        _question(file, number, row, question, options or lettered, answer)
        for number, row in enumerate(table.to_pylist(), 1)
    ]


def _column(file: Path, names: Mapping[str, str], usual: Sequence[str]) -> str:
    if found := [name for name in usual if name in names]:
        return names[found[0]]
    raise UserError(f"{file} has the columns {', '.join(names.values())}, and none of {', '.join(usual)}.")


def _question(
    file: Path, number: int, row: Mapping[str, Any], question: str, columns: Sequence[str], answer: str
) -> Question:
    given = row[columns[0]] if len(columns) == 1 else [row[name] for name in columns]
    if isinstance(given, dict):  # {"text": […], "label": ["A", …]}, as ARC has it
        given = given.get("text")
    if (
        not isinstance(given, list)
        or len(given) < 2
        or not all(isinstance(each, str) and each.strip() for each in given)
    ):
        raise UserError(f"{file}: question {number} has to have two options or more, each of them text.")
    options = tuple(each.strip() for each in given)
    return Question(str(row[question] or "").strip(), options, _right(file, number, row[answer], options))


def _right(file: Path, number: int, given: Any, options: tuple[str, ...]) -> int:
    """The number of the right option, from its text, its letter, or its number counted from 0."""
    said = str(given).strip()
    if said in options:
        return options.index(said)
    if re.fullmatch("[A-Ha-h]", said):
        right = ord(said.upper()) - ord("A")
    elif re.fullmatch(r"\d+", said):
        right = int(said)
    else:
        right = len(options)
    if right >= len(options):
        raise UserError(
            f"{file}: the answer {said[:40]!r} of question {number} is none of its {len(options)} options; it is an "
            "option's text, its letter, or its number counted from 0."
        )
    return right


def _encode(questions: Sequence[Question], reader: Reader, context: int, right_alone: bool) -> Split:
    """Return an example for each option, or for the right one: ids `(n, longest)`, targets those of the option."""
    rows, about = [], []
    for number, question in enumerate(questions):
        for place, option in enumerate(question.options):
            if right_alone and place != question.right:
                continue
            asked, said = reader.ids(question.text + BEFORE_OPTION), reader.ids(f" {option}")
            said = said[: context // 2]
            # The end of a long question is nearer to its options.
            rows.append((asked[-(context - len(said)) :], said))
            about.append((number, place == question.right, len(option.encode())))
    ids, targets = continued(rows)
    numbers = dict(zip(("question", "is_right", "option_bytes"), torch.tensor(about).T, strict=True))
    return Split({"input_ids": ids, **numbers}, targets, _tokens)


def _tokens(inputs: Inputs) -> Inputs:
    """Return what models take of the stored inputs: neither the question's number nor what is right."""
    assert isinstance(inputs, dict)
    return {"input_ids": inputs["input_ids"].long()}
