import pytest
import yaml

from compression.errors import UserError
from compression.study import definition, texts


def shipped():
    return yaml.safe_load(definition.DEFAULT_FILE.read_text(encoding="utf-8"))


def read(changed):
    return definition.parse_study(yaml.safe_dump(changed, allow_unicode=True, sort_keys=False))


def texts_in(part):
    """Every {language: text} in the study."""
    if isinstance(part, dict):
        if part and part.keys() <= texts.LANGUAGES.keys():
            yield part
        for value in part.values():
            yield from texts_in(value)
    elif isinstance(part, list):
        for value in part:
            yield from texts_in(value)


def test_the_shipped_study_has_eight_rows_three_questionnaires_and_says_all_in_both_languages():
    study = read(shipped())
    assert len(study.rows) == 8
    assert [s.questionnaire for s in study.stages if s.questionnaire] == list(study.questionnaires)
    assert len(study.questionnaires) == 3
    said = list(texts_in(shipped()))
    assert len(said) > 100
    assert all(set(text) == {"en", "zh"} and all(text.values()) for text in said)


def test_every_sentence_of_the_interface_is_said_in_every_language_with_the_same_names():
    import string

    for key, text in texts.load_texts().items():
        names = {code: {n for _, n, _, _ in string.Formatter().parse(t) if n} for code, t in text.items()}
        assert set(text) == set(texts.LANGUAGES), key
        assert len({frozenset(n) for n in names.values()}) == 1, key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["stages"][1]["rows"].append("learn/magic"), "learn/magic, which is defined nowhere"),
        (lambda s: s["stages"][0].update(questionnaire="none"), "none, which is defined nowhere"),
        (lambda s: s.update(colour="red"), "colour"),
        (lambda s: s.pop("consent"), "consent"),
        (lambda s: s["questionnaires"]["before"]["questions"][0].pop("choices"), "choices belong to single"),
        (lambda s: s["questionnaires"]["before"]["questions"][2].update(low=5), "low must lie below high"),
        (lambda s: s["title"].update(fr="étude"), "a text is given by language"),
        (lambda s: s["questionnaires"]["after"].update(questions=[]), "has questions or a link"),
        (lambda s: s["questionnaires"]["after"].update(link="javascript:alert(1)"), "link"),
    ],
)
def test_a_mistake_in_the_yaml_is_named_in_one_sentence(change, said):
    changed = shipped()
    change(changed)
    with pytest.raises(UserError, match="is wrong at") as refusal:
        read(changed)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_is_no_yaml_is_refused_in_one_sentence():
    with pytest.raises(UserError, match="not YAML"):
        definition.parse_study("title: [")
    with pytest.raises(UserError, match="is wrong at the study"):
        definition.parse_study("just a word")


@pytest.mark.parametrize(
    ("stage", "families", "row"),
    [
        ("learning", ("prune",), "learn/pruning"),
        ("practice", ("prune",), "tune/pruning"),
        ("practice", ("prune", "distill"), "combine"),
        ("learning", ("prune", "distill"), ""),
        ("learning", (), "learn/models"),
        ("practice", ("quantize",), "tune/quantization"),
        ("before", ("prune",), ""),
        ("", ("prune",), ""),
    ],
)
def test_a_run_counts_for_the_row_of_its_families_in_the_stage_it_ran_in(stage, families, row):
    assert read(shipped()).row_of_run(stage, families) == row


def test_a_refusal_is_said_in_the_language_of_its_reader():
    refusal = texts.StudyError("all_done")
    with texts.use_language("zh"):
        assert str(refusal) == "所有阶段均已完成。"
    with texts.use_language("xx"):
        assert str(refusal) == "Every stage is done."
