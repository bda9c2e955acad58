"""The four corners and their decomposition."""

import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.statistics.ceiling import ceiling
from codi_tracing.analysis.statistics.corners import corners, decomposition
from codi_tracing.analysis.table import check_table
from tests.support.tables import cell, experiment


def test_the_corners_of_a_pair_are_its_two_runs_and_their_exchanged_thoughts():
    rows = []
    for direction, source, patched in [("denoising", "clean", 3.0), ("noising", "corrupted", -1.0)]:
        rows.append(cell(0, direction, source, "thought", "logit_difference", patched, 4.0, -4.0))
    table = check_table(pd.DataFrame(rows))
    y = corners(table).set_index("corner")["logit_difference"]
    assert y.to_dict() == {"cc": 4.0, "xc": 3.0, "cx": -1.0, "xx": -4.0}
    parts = decomposition(table).set_index("contrast")["effect"]
    expected = {"xc − xx": 7, "cc − cx": 5, "cx − xx": 3, "cc − xc": 1, "cc − xc − cx + xx": -2}
    assert parts.to_dict() == pytest.approx({name: value / 8 for name, value in expected.items()})


def test_the_indirect_parts_are_the_two_ceilings_and_each_route_completes_the_other():
    table = experiment(thought=(0.9, 0.4))
    parts = decomposition(table).set_index("contrast")["effect"]
    assert parts["xc − xx"] == pytest.approx(ceiling(table, "denoising").effect)
    assert parts["cc − cx"] == pytest.approx(ceiling(table, "noising").effect)
    assert parts["xc − xx"] + parts["cc − xc"] == pytest.approx(1)
    assert parts["cc − cx"] + parts["cx − xx"] == pytest.approx(1)
    assert parts["cc − cx"] - parts["xc − xx"] == pytest.approx(parts["cc − xc − cx + xx"])


def test_the_answers_of_a_corner_are_shares_of_the_same_pairs():
    found = corners(experiment(thought=(0.95, 0.95), loses=0.25)).set_index("corner")
    answers = found[["answer_clean", "answer_corrupted", "answer_other"]]
    np.testing.assert_allclose(answers.sum(axis=1), 1)
    assert answers.loc["cc"].tolist() == [1, 0, 0]
    assert answers.loc["xc"].tolist() == [1, 0, 0]
    assert answers.loc["cx"].tolist() == [0, 1, 0]
    assert answers.loc["cu"].tolist() == [0.75, 0, 0.25]
    assert answers.loc["xu"].tolist() == [0, 0.75, 0.25]
