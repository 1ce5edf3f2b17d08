"""No field of numbers takes NaN, and only those that say so take infinity: on the command line and in Python."""

import math

import pytest

from compression import methods, params
from compression.errors import UserError
from compression.reporting.survey import Budget
from compression.runs.settings import Settings
from compression.tuning.config import TuningConfig
from compression.tuning.space import build_space

CLASSES = {name: methods.method(name) for name in methods.METHODS}
CLASSES |= {cls.__name__: cls for cls in (Settings, TuningConfig, Budget)}
FLOATS = [
    (cls, field)
    for cls in CLASSES
    for field in params.fields(CLASSES[cls]).values()
    if field.kind.item is float and field.kind.container != "pairs"
]


@pytest.mark.parametrize(("cls", "field"), FLOATS, ids=[f"{cls}.{field.name}" for cls, field in FLOATS])
def test_a_field_of_numbers_takes_no_nan(cls, field):
    text = {"": "{}", "list": "0.5/{}", "mapping": "layer:{}"}[field.kind.container]
    for value in ("nan", "-nan", "NAN"):
        with pytest.raises(UserError, match=f"{field.name}.*out of range"):
            field.parse(text.format(value))
    given = {"": math.nan, "list": (0.5, math.nan), "mapping": {"layer": math.nan}}[field.kind.container]
    with pytest.raises(UserError, match=f"{field.name}.*out of range"):
        CLASSES[cls](**{field.name: given})


@pytest.mark.parametrize(("cls", "field"), FLOATS, ids=[f"{cls}.{field.name}" for cls, field in FLOATS])
def test_a_field_of_numbers_takes_no_infinity(cls, field):
    text = {"": "{}", "list": "0.5/{}", "mapping": "layer:{}"}[field.kind.container]
    says_so = field.param.interval and math.inf in field.param.interval
    for value in ("-inf",) if says_so else ("inf", "-inf", "1e999"):
        with pytest.raises(UserError, match=f"{field.name}.*out of range"):
            field.parse(text.format(value))


@pytest.mark.parametrize("values", ["nan..0.5", "0.1..nan", "0.1/nan", "inf..0.5", "0.1..inf", "0.5..0.1", "0.5..0.5"])
def test_a_space_takes_no_end_that_is_no_number(values):
    with pytest.raises(UserError):
        build_space("magnitude", {"magnitude.sparsity": values})
