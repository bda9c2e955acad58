"""An operator word is replaced together with its operation, and only where it has one meaning."""

import pytest

from codi_tracing.patching.pair_making.gsm8k_chains import write_step
from codi_tracing.patching.pair_making.number_edits import trace_operands
from codi_tracing.patching.pair_making.word_edits import word_edits
from tests.patching.pair_making.test_number_edits import problem


@pytest.mark.parametrize(
    ("question", "chain", "changed", "corrupted"),
    [
        ("Ann has 20 nuts and Ben 6 more nuts than Ann.", ["20+6=26", "26+20=46"],
         "Ann has 20 nuts and Ben 6 fewer nuts than Ann.", ["20-6=14", "14+20=34"]),
        ("Ann has 20 nuts, which is 6 more than Ben.", ["20-6=14"], "Ann has 20 nuts, which is 6 less than Ben.",
         ["20+6=26"]),
        ("A cup is $20, a jug $6 less than a cup.", ["20-6=14"], "A cup is $20, a jug $6 more than a cup.",
         ["20+6=26"]),
        ("Ann has 20 nuts and Ben twice as many.", ["20*2=40", "20+40=60"], "Ann has 20 nuts and Ben half as many.",
         ["20/2=10", "20+10=30"]),
        ("Ann has 20 nuts and Ben half as many.", ["20*.5=10"], "Ann has 20 nuts and Ben twice as many.", ["20*2=40"]),
        ("Ann had 20 nuts and doubled them.", ["2*20=40"], "Ann had 20 nuts and tripled them.", ["3*20=60"]),
    ],
)  # fmt: skip
def test_an_operator_word_becomes_its_opposite_and_so_does_its_operation(question, chain, changed, corrupted):
    (edit,) = word_edits(trace_operands(problem(question, *chain)))
    assert (edit.name, edit.question, [*map(write_step, edit.chain)]) == ("operator_word", changed, corrupted)
    assert question[: edit.start] + edit.corrupted + question[edit.end :] == changed


@pytest.mark.parametrize(
    ("question", "chain"),
    [
        ("Ann has 20 nuts and Ben 3 times more nuts than Ann.", ["20*3=60"]),
        ("The shortest tree is 9 feet, another 6 feet more than it.", ["9+6=15"]),  # would no longer be the shortest
        ("Ann has 20 nuts, Ben twice as many and Cid half as many as Ben.", ["20*2=40", "40/2=20", "20+40=60"]),
        ("Ann has 20 nuts and Ben 6 more nuts than Ann, and Cid 6 nuts.", ["20+6=26", "26+6=32"]),
    ],
)  # fmt: skip
def test_a_word_that_may_mean_something_else_is_left(question, chain):
    assert not list(word_edits(trace_operands(problem(question, *chain))))
