"""The study on the command line, as participants and researchers type it."""

import re
import signal

import pytest
import yaml

from compression.cli import main
from compression.study import definition
from tests.study.conftest import answers_for


@pytest.fixture
def compression(place, capsys, monkeypatch):
    """`compression(*words)`: exit code, output, errors, as p07."""
    monkeypatch.setenv("COMPRESSION_PARTICIPANT", "p07")
    before = signal.getsignal(signal.SIGTERM)

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            main(["study", *words])
        signal.signal(signal.SIGTERM, before)
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def filled_in(tmp_path):
    """`filled_in("before")`: a YAML file with answers to it."""

    def made(name):
        study = definition.parse_study(definition.DEFAULT_FILE.read_text(encoding="utf-8"))
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(answers_for(study.questionnaires[name])))
        return str(file)

    return made


def test_a_participant_gets_from_invitation_to_practice(compression, filled_in):
    for words in (
        ["create"],
        ["invite", "p07", "--background", "engineer"],
        ["consent", "--yes"],
        ["answer", "before", "--file", filled_in("before")],
        ["start", "learn/pruning"],
        ["pause"],
        ["resume"],
        ["stop"],
        ["correct", "learn/pruning", "--hours", "1.5", "--reason", "read on paper"],
        ["done"],
        ["answer", "learned", "--file", filled_in("learned")],
        ["note", "*pruned* too much"],
        ["prefer", "a phone", "quantization", "it is small"],
    ):
        code, out, errors = compression(*words)
        assert (code, errors) == (0, ""), words
        assert out
    _, out, _ = compression("status")
    assert "→ Practice (practice)" in out
    assert "✓ Questionnaire after learning" in out
    _, out, _ = compression("sheet")
    assert re.search(r"learn/pruning  Learning pruning +1\.50 +1\.50 +0\.00", out)
    _, out, _ = compression("journal")
    assert "*pruned* too much" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "--participant", "p99"], "Nobody goes by 'p99'"),
        (["start", "combine"], "Practice is not open yet; first comes First questionnaire (before)."),
        (["start", "magic"], "no row 'magic'"),
        (["stop"], "No clock is running"),
        (["done"], "ends by itself"),
        (["correct", "learn/pruning", "--hours", "x", "--reason", "y"], "'x' is not a valid float"),
        (["correct", "learn/pruning", "--hours", "-3", "--reason", "y"], "cannot take away more"),
        (["answer", "before", "--file", "nowhere.yaml"], "nowhere.yaml cannot be read (No such file"),
        (["answer", "before", "--receipt", "R1"], "has no outside form"),
        (["invite", "p07", "--background", "student"], "'p07' is taken"),
        (["create", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["prefer", "a phone", "magic", "x"], "'magic' is unknown"),
    ],
)
def test_what_goes_wrong_is_one_sentence(lab, compression, words, said):
    lab.join("p07")
    code, _, errors = compression(*words)
    assert code in (1, 2)
    assert said in errors
    assert "Traceback" not in errors


def test_nothing_is_done_before_consent_and_without_a_name(study, compression, monkeypatch):
    compression("invite", "p07", "--background", "student", "--language", "zh")
    code, _, errors = compression("note", "hello")
    assert code == 1
    assert "首先需要您的知情同意" in errors
    monkeypatch.delenv("COMPRESSION_PARTICIPANT")
    code, _, errors = compression("status")
    assert (code, "Say who you are" in errors or "请说明您是谁" in errors) == (1, True)


def test_answers_that_are_no_yaml_mapping_are_refused(lab, compression, tmp_path):
    lab.join("p07")
    for text in ("- a\n- b", "a: ["):
        (tmp_path / "bad.yaml").write_text(text)
        code, _, errors = compression("answer", "before", "--file", str(tmp_path / "bad.yaml"))
        assert code == 1
        assert "does not hold answers" in errors


def test_a_forgotten_clock_is_reminded_of_at_every_command(lab, compression):
    from datetime import timedelta

    from compression.study import clock, database, participants
    from compression.study.tables import utc_now

    lab.join("p07", until="practice")
    with database.open_session() as session:
        clock.start(session, participants.find(session, "p07"), "combine", utc_now() - timedelta(hours=9))
    _, out, errors = compression("status")
    assert "The clock runs for combine." in out
    assert "The clock of combine has run for 9.0 hours without a sign of life" in errors


def test_questions_are_asked_again_until_they_are_answered(lab, compression, monkeypatch):
    lab.join("p07")
    said = iter(["", "months", "docker mlflow", "3", "9", "3", "3", "pruning", ""])
    monkeypatch.setattr("click.prompt", lambda *_, **__: next(said))
    code, out, errors = compression("answer", "before")
    assert code == 0, errors
    assert "“How long have you worked with neural networks?” needs an answer." in errors
    assert "there are 1–5" in errors
    assert "version 1" in out


def test_the_example_is_the_shipped_study(compression):
    _, out, _ = compression("example")
    assert (
        definition.parse_study(out).rows.keys()
        == definition.parse_study(definition.DEFAULT_FILE.read_text()).rows.keys()
    )
