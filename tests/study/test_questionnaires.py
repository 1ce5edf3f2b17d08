import csv
import io

import pytest

from compression.errors import UserError
from compression.files import to_csv
from compression.study import database, definition, notes, participants, questionnaires, stages
from tests.study.conftest import answers_for, join


@pytest.fixture
def participant(session):
    return join(session, "p07")


def first(session):
    return answers_for(database.load_study(session).questionnaires["before"])


def test_answers_are_kept_as_given_and_open_the_next_stage(session, participant):
    given = first(session) | {"tools": ["docker", "onnx", "docker"], "hopes": [" all of it "]}
    assert questionnaires.append_answers(session, participant, "before", given) == 1
    [kept] = questionnaires.list_versions(session, participant, "before")
    assert kept.content["tools"] == ["docker", "onnx"]
    assert kept.content["knows_pruning"] == 1
    assert kept.content["hopes"] == "all of it"
    assert stages.current(session, participant).name == "learning"


def test_answering_again_adds_a_version_and_keeps_the_one_before(session, participant):
    questionnaires.append_answers(session, participant, "before", first(session))
    assert questionnaires.append_answers(session, participant, "before", first(session) | {"knows_pruning": ["5"]}) == 2
    kept = questionnaires.list_versions(session, participant, "before")
    assert [k.content["knows_pruning"] for k in kept] == [1, 5]


def test_a_questionnaire_of_a_later_stage_says_which_comes_first(session, participant):
    with pytest.raises(UserError, match=r"first comes First questionnaire \(before\)"):
        questionnaires.append_answers(session, participant, "after", {})
    with pytest.raises(UserError, match="no questionnaire 'x'; there are before, learned, after"):
        questionnaires.append_answers(session, participant, "x", {})


def test_an_optional_question_may_be_left_out(session, participant):
    given = {name: v for name, v in first(session).items() if name not in ("tools", "hopes")}
    questionnaires.append_answers(session, participant, "before", given)
    assert questionnaires.list_versions(session, participant, "before")[0].content["hopes"] is None


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
def test_a_wrong_answer_is_named_by_its_question_and_nothing_is_kept(session, participant, name, given, said):
    with pytest.raises(questionnaires.InvalidAnswersError, match=said) as refusal:
        questionnaires.append_answers(session, participant, "before", first(session) | {name: given})
    assert list(refusal.value.problems) == [name]
    assert questionnaires.list_versions(session, participant, "before") == []
    assert stages.current(session, participant).name == "before"


def linked():
    shipped = definition.DEFAULT_FILE.read_text(encoding="utf-8")
    return shipped.replace("  before:\n", "  before:\n    link: https://forms.example/1\n", 1)


def test_an_outside_form_is_taken_by_its_receipt(session, participant):
    with pytest.raises(UserError, match="no outside form"):
        questionnaires.save_receipt(session, participant, "before", "R-1")
    session.add(database.Definition(content=linked()))
    session.flush()
    with pytest.raises(UserError, match="Give the receipt"):
        questionnaires.save_receipt(session, participant, "before", " ")
    assert questionnaires.save_receipt(session, participant, "before", " R-2044 ") == 1
    assert questionnaires.list_versions(session, participant, "before")[0].receipt == "R-2044"
    assert stages.current(session, participant).name == "learning"


def test_the_export_has_a_row_per_answer_under_pseudonyms_and_no_formula_runs(session, participant):
    given = first(session) | {"tools": ["docker", "onnx"], "hopes": ["=HYPERLINK(1)"]}
    questionnaires.append_answers(session, participant, "before", given)
    exported = to_csv(questionnaires.answer_records(session, participants.list_participants(session)))
    rows = {row["question"]: row for row in csv.DictReader(io.StringIO(exported))}
    assert rows["tools"]["answer"] == "docker; onnx"
    assert rows["hopes"]["answer"] == "'=HYPERLINK(1)"
    assert rows["experience"]["participant"] == participant.pseudonym
    assert "p07" not in exported


def test_notes_make_a_journal_beside_the_runs(session, participant):
    notes.add_note(session, participant, "# pruned too much\n\nlost 40 points", run="abc")
    notes.add_note(session, participant, "  again  ")
    text = notes.format_journal(notes.list_notes(session, participant))
    assert "· run abc\n\n# pruned too much" in text
    assert text.endswith("UTC\n\nagain\n")
    with pytest.raises(UserError, match="The note cannot be empty"):
        notes.add_note(session, participant, " \n ")


def test_the_newest_preference_for_a_situation_holds_and_the_older_one_is_kept(session, participant):
    notes.add_preference(session, participant, "a phone", "pruning", "small")
    notes.add_preference(session, participant, "a server", "distillation", "fast")
    notes.add_preference(session, participant, "a phone", "quantization", "smaller")
    held = notes.current_preferences(session, participant)
    assert [(p.situation, p.technique) for p in held] == [("a phone", "quantization"), ("a server", "distillation")]
    assert session.query(type(held[0])).count() == 3
    assert notes.technique_title(session, held[1]) == "distillation"
    with pytest.raises(UserError, match="technique 'magic' is unknown; there are pruning"):
        notes.add_preference(session, participant, "a phone", "magic", "why not")
    with pytest.raises(UserError, match="The reason cannot be empty"):
        notes.add_preference(session, participant, "a phone", "pruning", "")
