"""The result of a solution's step is read whole or not at all."""

import math

import pytest

from codi_tracing.patching.lens.questions import step_result


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9", 9),
        (".5", 0.5),
        ("-.5", -0.5),
        ("15.00", 15),
        ("1,200", 1200),
        ("$3", 3),
        ("50%", 50),
        ("3/4", 0.75),
        ("7.", 7),
    ],
)
def test_a_steps_result_is_read_whole(text, number):
    assert step_result(text) == number


@pytest.mark.parametrize("text", ["", "x", "9 apples", "1/0", "1e400", "٣", "1/2/3", "--3"])
def test_any_other_text_is_nan_and_not_a_part_of_it(text):
    assert math.isnan(step_result(text))
