import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from compression import params
from compression.errors import UserError
from compression.params import Interval, Place, Values, group, param


@dataclass(frozen=True)
class Example:
    temperature: float = param(4.0, "softening", interval="(0, inf)")
    epochs: int | None = param(None, "passes", interval="[1, inf)")
    kind: str = param("a", "which", choices=("a", "b"))
    flag: bool = param(False, "whether")

    def __post_init__(self):
        params.check(self)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("[0, 1]", (0, 1, 0.5), (-0.1, 1.1)),
        ("(0, 1)", (0.5,), (0, 1)),
        ("[1, inf)", (1, 1e9), (0.99, float("inf"))),
    ],
)
def test_an_interval_holds_what_mathematics_says(text, inside, outside):
    assert all(v in Interval(text) for v in inside)
    assert not any(v in Interval(text) for v in outside)


def test_a_field_is_read_from_text():
    given = {"temperature": "2", "epochs": "3", "kind": "b", "flag": "True"}
    assert params.build(Example, given, "x") == Example(2.0, 3, "b", True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": "0"}, r"temperature=0.0 is out of range; it takes a number in \(0, inf\)"),
        ({"temperature": "warm"}, "temperature='warm' is not a number"),
        ({"temperature": "nan"}, "out of range"),
        ({"epochs": "2.5"}, "not a whole number"),
        ({"kind": "c"}, "kind='c' is unknown; it is one of a, b"),
        ({"flag": "maybe"}, "not true or false"),
        ({"colour": "red"}, "Example has no field 'colour'; it has temperature, epochs, kind, flag"),
    ],
)
def test_bad_text_is_refused_by_field_and_by_what_would_be_right(given, said):
    with pytest.raises(UserError, match=said):
        params.build(Example, given, "Example")


def test_values_given_in_code_are_checked_too():
    with pytest.raises(UserError, match="out of range"):
        Example(temperature=-1.0)
    with pytest.raises(UserError, match="not a whole number"):
        Example(epochs=True)


def test_a_whole_number_serves_as_a_number():
    assert Example(temperature=3).temperature == 3


@dataclass(frozen=True)
class Training:
    epochs: int | None = param(None, "passes", interval="[0, inf)")
    keep: str = param("best", "which weights", choices=("best", "last"))


@dataclass(frozen=True)
class Holder(metaclass=params.Flat):
    style: str = param("plain", "which", choices=("plain", "trained"))
    widths: tuple[int, ...] = param((2, 4), "bits", interval="[1, 8]")
    parts: tuple[str, ...] = param(("heads",), "parts", choices=("heads", "ffn"))
    models: tuple[Place, ...] = param((), "models")
    shares: Mapping[str, float] = param({}, "share of each layer", interval="[0, 1)")
    pairs: tuple[tuple[str, str], ...] = param((), "layers to compare")
    ranges: Mapping[str, Values] = param({}, "values of fields")
    rate: float = param(0.1, "only where it trains", interval="(0, inf)", when={"style": ("trained",)})
    training: Training = group(Training, fixed={"keep": "last"}, when={"style": ("trained",)})

    def __post_init__(self):
        params.check(self)


LISTS = [
    ("widths", "2/4/8", (2, 4, 8)),
    ("widths", "2,4,8", (2, 4, 8)),
    ("widths", "8", (8,)),
    ("parts", "heads/ffn", ("heads", "ffn")),
    ("models", "", ()),
    ("models", "runs:/1/model", ("runs:/1/model",)),
    ("models", "resnet20//runs:/1/model///home/me", ("resnet20", "runs:/1/model", "/home/me")),
    ("shares", "conv1:0.3/stages.0:0.5", {"conv1": 0.3, "stages.0": 0.5}),
    ("shares", "conv1=0.3,stages.0=0.5", {"conv1": 0.3, "stages.0": 0.5}),
    ("pairs", "a:b/c", (("a", "b"), ("c", "c"))),
    ("ranges", "s.bits=4/8,s.rate=0.1..0.2", {"s.bits": "4/8", "s.rate": "0.1..0.2"}),
    ("ranges", "s.bits=4/8", {"s.bits": "4/8"}),
]


@pytest.mark.parametrize(("name", "text", "value"), LISTS)
def test_lists_and_mappings_have_one_grammar_that_reads_back_what_it_writes(name, text, value):
    field = params.fields(Holder)[name]
    assert field.parse(text) == value
    assert field.parse(field.text(value)) == value
    assert getattr(Holder(**{name: text}), name) == value


@pytest.mark.parametrize(("name", "_", "value"), LISTS)
def test_yaml_uses_lists_and_mappings_of_its_own(name, _, value):
    plain = [list(v) if isinstance(v, tuple) else v for v in value] if isinstance(value, tuple) else value
    assert getattr(params.build(Holder, {name: plain}, "Holder"), name) == value


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("widths", "2/x", "widths='2/x' is not a list of whole numbers, a/b; it takes .* each in \\[1, 8\\]"),
        ("widths", "2/16", "widths=16 is out of range"),
        ("parts", "heads/tails", "parts='tails' is unknown; it is any of heads, ffn with / between them"),
        ("parts", "heads/heads", "names one thing twice"),
        ("shares", "conv1", "shares='conv1' is not a name with a number for each, a:x/b:y"),
        ("shares", "conv1:0.5/", "shares='conv1:0.5/' is not"),
        ("shares", "conv1:0.5/conv1:0.2", "names one thing twice"),
        ("shares", "conv1:1", "shares=1.0 is out of range"),
    ],
)
def test_a_wrong_list_is_refused_by_the_item_and_by_what_would_be_right(name, text, said):
    with pytest.raises(UserError, match=said):
        params.fields(Holder)[name].parse(text)


def test_fields_of_a_group_are_the_holders_own_to_whoever_looks_from_outside():
    known = params.fields(Holder)
    assert (known["epochs"].group, "keep" in known) == ("training", False)
    held = Holder(epochs=3)
    assert held.training == Training(3, "last")
    assert dataclasses.replace(held, epochs=4).training == Training(4, "last")
    assert params.values(held)["epochs"] == 3
    assert params.texts(held, changed=True) == {"epochs": "3"}
    assert params.build(Holder, {"epochs": "3"}, "Holder") == held
    with pytest.raises(UserError, match="has no field 'keep'"):
        params.build(Holder, {"keep": "best"}, "Holder")
    with pytest.raises(UserError, match=r"epochs=-1 is out of range"):
        Holder(epochs=-1)


def test_a_field_with_a_condition_is_inactive_until_it_is_met():
    assert params.inactive(Holder()) == {"rate", "epochs"}
    assert params.inactive(Holder(style="trained")) == set()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pairs", [5, {"a": 1}]),
        ("pairs", [["a", ["b"]]]),
        ("pairs", [["a", "b", "c"]]),
        ("parts", {"heads": 1}),
        ("parts", [["heads"]]),
        ("shares", ["conv1"]),
        ("shares", {"conv1": [0.3]}),
        ("epochs", [3]),
        ("epochs", {"a": 3}),
    ],
)
def test_a_value_of_yaml_that_the_field_does_not_hold_is_refused(name, value):
    with pytest.raises(UserError, match=f"{name}=.* is not "):
        params.build(Holder, {name: value}, "Holder")


def test_a_name_in_a_list_of_pairs_is_never_taken_apart():
    assert params.fields(Holder)["pairs"].read(["ab", "c:d", ["e", "f"], 5]) == (
        ("ab", "ab"),
        ("c", "d"),
        ("e", "f"),
        ("5", "5"),
    )


def test_a_long_value_is_cut_short_in_the_sentence_that_refuses_it():
    with pytest.raises(UserError) as refused:
        params.fields(Holder)["epochs"].parse("x" * 100_000)
    assert len(str(refused.value)) < 400
