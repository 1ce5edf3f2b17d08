import csv
import io

import pytest

from compression.errors import UserError
from compression.study import definition, notes, people, questionnaires, sheets, stages, store
from tests.study.conftest import answers_for, join


@pytest.fixture
def person(session):
    return join(session, "p07")


def first(session):
    return answers_for(store.study(session).questionnaires["before"])


def test_answers_are_kept_as_given_and_open_the_next_stage(session, person):
    given = first(session) | {"tools": ["docker", "onnx", "docker"], "hopes": [" all of it "]}
    assert questionnaires.answer(session, person, "before", given) == 1
    [kept] = questionnaires.versions(session, person, "before")
    assert kept.content["tools"] == ["docker", "onnx"]
    assert kept.content["knows_pruning"] == 1
    assert kept.content["hopes"] == "all of it"
    assert stages.current(session, person).name == "learning"


def test_answering_again_adds_a_version_and_keeps_the_one_before(session, person):
    questionnaires.answer(session, person, "before", first(session))
    assert questionnaires.answer(session, person, "before", first(session) | {"knows_pruning": ["5"]}) == 2
    kept = questionnaires.versions(session, person, "before")
    assert [k.content["knows_pruning"] for k in kept] == [1, 5]


def test_a_questionnaire_of_a_later_stage_says_which_comes_first(session, person):
    with pytest.raises(UserError, match=r"first comes First questionnaire \(before\)"):
        questionnaires.answer(session, person, "after", {})
    with pytest.raises(UserError, match="no questionnaire 'x'; there are before, learned, after"):
        questionnaires.answer(session, person, "x", {})


def test_an_optional_question_may_be_left_out(session, person):
    given = {name: v for name, v in first(session).items() if name not in ("tools", "hopes")}
    questionnaires.answer(session, person, "before", given)
    assert questionnaires.versions(session, person, "before")[0].content["hopes"] is None


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("experience", [], "needs an answer"),
        ("experience", ["  "], "needs an answer"),
        ("experience", ["decades"], "'decades' is no answer to “How long have you"),
        ("tools", ["docker", "<script>"], "'<script>' is no answer"),
        ("knows_pruning", ["6"], "there are 1–5"),
        ("knows_pruning", ["-1"], "there are 1–5"),
        ("knows_pruning", ["٣"], "there are 1–5"),
        ("knows_pruning", ["9" * 5000], "there are 1–5"),
        ("hopes", ["x" * 1_000_000], "at most 10000 characters, and this has 1000000"),
    ],
)
def test_a_wrong_answer_is_named_by_its_question_and_nothing_is_kept(session, person, name, given, said):
    with pytest.raises(questionnaires.Unanswered, match=said) as refusal:
        questionnaires.answer(session, person, "before", first(session) | {name: given})
    assert list(refusal.value.problems) == [name]
    assert questionnaires.versions(session, person, "before") == []
    assert stages.current(session, person).name == "before"


def linked():
    shipped = definition.DEFAULT.read_text(encoding="utf-8")
    return shipped.replace("  before:\n", "  before:\n    link: https://forms.example/1\n", 1)


def test_an_outside_form_is_taken_by_its_receipt(session, person):
    with pytest.raises(UserError, match="no outside form"):
        questionnaires.hand_receipt(session, person, "before", "R-1")
    session.add(store.Definition(content=linked()))
    session.flush()
    with pytest.raises(UserError, match="Give the receipt"):
        questionnaires.hand_receipt(session, person, "before", " ")
    assert questionnaires.hand_receipt(session, person, "before", " R-2044 ") == 1
    assert questionnaires.versions(session, person, "before")[0].receipt == "R-2044"
    assert stages.current(session, person).name == "learning"


def test_the_export_has_a_row_per_answer_under_pseudonyms_and_no_formula_runs(session, person):
    given = first(session) | {"tools": ["docker", "onnx"], "hopes": ["=HYPERLINK(1)"]}
    questionnaires.answer(session, person, "before", given)
    exported = sheets.text(questionnaires.rows(session, people.everybody(session)))
    rows = {row["question"]: row for row in csv.DictReader(io.StringIO(exported))}
    assert rows["tools"]["answer"] == "docker; onnx"
    assert rows["hopes"]["answer"] == "'=HYPERLINK(1)"
    assert rows["experience"]["participant"] == person.pseudonym
    assert "p07" not in exported


def test_notes_make_a_journal_beside_the_runs(session, person):
    notes.add(session, person, "# pruned too much\n\nlost 40 points", run="abc")
    notes.add(session, person, "  again  ")
    text = notes.markdown(notes.journal(session, person))
    assert "· run abc\n\n# pruned too much" in text
    assert text.endswith("UTC\n\nagain\n")
    with pytest.raises(UserError, match="The note cannot be empty"):
        notes.add(session, person, " \n ")


def test_the_newest_preference_for_a_situation_holds_and_the_older_one_is_kept(session, person):
    notes.prefer(session, person, "a phone", "pruning", "small")
    notes.prefer(session, person, "a server", "distillation", "fast")
    notes.prefer(session, person, "a phone", "quantization", "smaller")
    held = notes.preferences(session, person)
    assert [(p.situation, p.technique) for p in held] == [("a phone", "quantization"), ("a server", "distillation")]
    assert session.query(type(held[0])).count() == 3
    assert notes.shown(session, held[1]) == "distillation"
    with pytest.raises(UserError, match="technique 'magic' is unknown; there are pruning"):
        notes.prefer(session, person, "a phone", "magic", "why not")
    with pytest.raises(UserError, match="The reason cannot be empty"):
        notes.prefer(session, person, "a phone", "pruning", "")
