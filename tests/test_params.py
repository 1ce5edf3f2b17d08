from dataclasses import dataclass

import pytest

from compression import params
from compression.errors import UserError
from compression.params import Interval, param


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
    assert params.from_text(Example, given, "x") == Example(2.0, 3, "b", True)


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
        params.from_text(Example, given, "Example")


def test_values_given_in_code_are_checked_too():
    with pytest.raises(UserError, match="out of range"):
        Example(temperature=-1.0)
    with pytest.raises(UserError, match="not a whole number"):
        Example(epochs=True)


def test_a_whole_number_serves_as_a_number():
    assert Example(temperature=3).temperature == 3
