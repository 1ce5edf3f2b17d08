"""Text to text: a decoder goes on after a source with its target, a translation or a summary, say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sacrebleu
import torch
from rouge_score import rouge_scorer
from torch import nn

from compression.errors import UserError
from compression.tasks.decoding import Reader, as_long, continued, load_reader, make_task, place_of, window_length
from compression.tasks.generation import Continuation, generate
from compression.tasks.table_files import find_files, read_table
from compression.tasks.task import Split, Task
from compression.tasks.text_files import choose_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.tasks import TaskRequest

PAIRS = (  # the usual names of the columns of source and target
    ("source", "target"),
    ("input", "output"),
    ("input", "target"),
    ("article", "summary"),
    ("document", "summary"),
    ("text", "summary"),
    ("article", "highlights"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("code", "docstring"),
)
SEPARATOR = "\n=>\n"  # between source and target, in the tokens that any tokenizer makes of it
MOST_GENERATED = 64  # examples of the test split that BLEU and ROUGE are computed on
BEAMS = 1


@dataclass(frozen=True)
class Pairs:
    """Sources and targets of one split."""

    sources: list[str]
    targets: list[str]


def text2text(request: TaskRequest) -> Task:
    """Load the pairs of texts in `data=PATH`, or of `text2text/PATH`: CSV, TSV, JSON, JSONL or parquet.

    An example is the source, a separator, the target and an end; the tokens after the separator are predicted. Sources
    that are too long are cut at their beginning, and a target at its end. Raises UserError for data that cannot be
    found, read or learned from, and a tokenizer that cannot be loaded.
    """
    place = place_of(request, "text2text", "a CSV, TSV, JSONL or parquet file with two columns of text")
    splits, told = _read_splits(Path(place), request)
    train = splits["train"]
    reader = load_reader(request.model, "".join(map(_whole, train.sources, train.targets)))
    context = window_length(request, reader)
    encoded = {name: _encode(pairs, reader, context, request.limit) for name, pairs in splits.items()}
    sizes = ", ".join(f"{len(split)} {name}" for name, split in encoded.items())
    written = partial(_continue, reader, splits["test"], context, request.limit)
    return make_task(request, reader, encoded, place, f"{sizes} pairs; {told}", continuations=written)


def _whole(source: str, target: str) -> str:
    return f"{source}{SEPARATOR}{target}\n"


def _read_splits(path: Path, request: TaskRequest) -> tuple[dict[str, Pairs], str]:
    """Return the pairs of train, validation and test, and how they were made. Raises UserError."""
    read = {}
    for split, files in find_files(path).items():
        tables = [(file, read_table(file)) for file in files]
        pairs = [_columns(file, table.column_names, request.text_columns) for file, table in tables]
        sources = [t for (_, table), (column, _) in zip(tables, pairs, strict=True) for t in _texts(table, column)]
        targets = [t for (_, table), (_, column) in zip(tables, pairs, strict=True) for t in _texts(table, column)]
        if missing := [i for i, each in enumerate(zip(sources, targets, strict=True), 1) if not all(each)]:
            raise UserError(f"{path}: {len(missing)} pairs lack a text, the first is number {missing[0]}; remove them.")
        read[split] = Pairs(sources, targets)
    rows, told = choose_rows({split: len(pairs.sources) for split, pairs in read.items()}, path)
    chosen = {
        name: Pairs([read[split].sources[i] for i in taken], [read[split].targets[i] for i in taken])
        for name, (split, taken) in rows.items()
    }
    return chosen, told


def _columns(file: Path, names: Sequence[str], given: tuple[str, ...]) -> tuple[str, str]:
    """The columns of source and target. Raises UserError where they are not told, or are not there."""
    by_name = {name.lower(): name for name in names}
    found = [pair for pair in PAIRS if all(name in by_name for name in pair)]
    pair = given or (tuple(by_name[name] for name in found[0]) if len(found) == 1 else ())
    if len(pair) != 2 or any(name not in names for name in pair):
        raise UserError(
            f"{file} has the columns {', '.join(names)}; name those of source and target: text_columns=SOURCE/TARGET."
        )
    return pair[0], pair[1]


def _texts(table: Any, column: str) -> list[str]:
    return ["" if value is None else str(value).strip() for value in table.column(column).to_pylist()]


def _encode(pairs: Pairs, reader: Reader, context: int, limit: int | None) -> Split:
    """Return the examples as token ids `(n, longest)`, padded on the right; targets are those of target and end."""
    prompts = [_prompt(reader, source, context) for source in pairs.sources[:limit]]
    end = [_end(reader)]
    wanted = [
        (reader.ids(text) + end)[: context - len(prompt)] for prompt, text in zip(prompts, pairs.targets, strict=False)
    ]
    ids, targets = continued(list(zip(prompts, wanted, strict=True)))
    return Split({"input_ids": ids}, targets, as_long)


def _end(reader: Reader) -> int:
    """The token that ends a text. Raises UserError where the tokenizer has none."""
    if reader.tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer of {reader.model} has no token for the end of a text, which a target needs.")
    return int(reader.tokenizer.eos_token_id)


def _prompt(reader: Reader, source: str, context: int) -> list[int]:
    """The tokens of the end of a source, and of the separator: at least half of the window is for the target."""
    separator = reader.ids(SEPARATOR)
    room = max(1, context // 2 - len(separator))
    return reader.ids(source)[-room:] + separator


def _continue(
    reader: Reader, pairs: Pairs, context: int, limit: int | None, model: nn.Module
) -> tuple[dict[str, float], list[Continuation]]:
    """BLEU (Papineni et al. 2002), in percent, and ROUGE-L (Lin 2004) on the first pairs, and what the model wrote."""
    count = min(MOST_GENERATED, limit or MOST_GENERATED, len(pairs.sources))
    prompts = [torch.tensor(_prompt(reader, source, context)) for source in pairs.sources[:count]]
    found = generate(model, prompts, context // 2, _end(reader), BEAMS)
    written = [reader.text(ids).strip() for ids in found]
    wanted = pairs.targets[:count]
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    rouge = [scorer.score(target, text)["rougeL"].fmeasure for target, text in zip(wanted, written, strict=True)]
    figures = {"bleu": sacrebleu.corpus_bleu(written, [wanted]).score, "rouge_l": sum(rouge) / count}
    shown = [
        Continuation(source, target, text) for source, target, text in zip(pairs.sources, wanted, written, strict=False)
    ]
    return figures, shown
