from collections import Counter

import pytest

from compression.errors import UserError
from compression.study import database, participants, stages
from tests.study.conftest import join


def test_assignments_are_balanced_within_each_background(session):
    for number, background in enumerate(["student"] * 5 + ["engineer"] * 4 + ["student"]):
        participants.invite(session, f"p{number:02}", background)
    found = Counter((p.background, p.assignment) for p in participants.list_participants(session))
    assert found == {
        ("student", "images"): 3,
        ("student", "text"): 3,
        ("engineer", "images"): 2,
        ("engineer", "text"): 2,
    }


def test_a_named_assignment_stands(session):
    assert participants.invite(session, "p01", "student", assignment="text").assignment == "text"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"participant_id": "Ada Lovelace"}, "cannot be an id"),
        ({"participant_id": "p' OR 1=1"}, "cannot be an id"),
        ({"participant_id": "p" * 41}, "cannot be an id"),
        ({"background": "wizard"}, "'wizard' is unknown; there are student, engineer"),
        ({"language": "fr"}, "'fr' is unknown; there are en, zh"),
        ({"assignment": "video"}, "'video' is unknown; there are images, text"),
        ({"participant_id": "p01"}, "'p01' is taken"),
    ],
)
def test_a_wrong_invitation_is_one_sentence(session, given, said):
    participants.invite(session, "p01", "student")
    with pytest.raises(UserError, match=said):
        participants.invite(session, **({"participant_id": "p02", "background": "student"} | given))


def test_pseudonyms_differ_and_do_not_show_the_id(session):
    made = [participants.invite(session, f"p{n}", "student").pseudonym for n in range(20)]
    assert len(set(made)) == 20
    assert not any(f"p{n}" in name.lower().split("-") for n, name in enumerate(made))


def test_consent_comes_before_anything_else_and_keeps_its_text(session):
    participant = participants.invite(session, "p07", "student")
    with pytest.raises(UserError, match="First comes your consent"):
        participants.find_consenting(session, "p07")
    participants.record_consent(session, participant)
    at = participant.consented
    participants.record_consent(session, participant)
    assert participants.find_consenting(session, "p07").consented == at
    assert "voluntary" in participant.consent


def test_stages_open_in_order_and_a_later_one_says_which_comes_first(session):
    participant = join(session, "p07")
    assert stages.current(session, participant).name == "before"
    with pytest.raises(UserError, match=r"Practice is not open yet; first comes First questionnaire \(before\)"):
        stages.finish_work(session, participant, "practice")
    with pytest.raises(UserError, match="ends by itself"):
        stages.finish_work(session, participant)
    stages.complete(session, participant, database.load_study(session).stage("before"))
    assert stages.finish_work(session, participant).name == "learning"
    assert stages.current(session, participant).name == "learned"
    with pytest.raises(UserError, match="no stage 'party'; there are before, learning"):
        stages.finish_work(session, participant, "party")


def test_after_the_last_stage_there_is_none(session):
    participant = join(session, "p07", until="never")
    assert stages.current(session, participant) is None
    with pytest.raises(UserError, match="Every stage is done"):
        stages.finish_work(session, participant)
