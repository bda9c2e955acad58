"""The four corners and their decomposition."""

import numpy as np
import pytest

from codi_tracing.analysis.statistics.corners import corners, decomposition
from codi_tracing.analysis.statistics.effects import effect, pooled
from codi_tracing.analysis.statistics.measures import measured
from tests.support.tables import experiment, outcomes


def test_the_answers_of_a_corner_are_shares_of_the_same_pairs():
    table = outcomes({(None, "other"): "pppppppoho", (None, "unrelated"): "hhoooooooo"})
    found = corners(table).set_index("corner")
    answers = found[["answer_clean", "answer_corrupted", "answer_other"]]
    np.testing.assert_allclose(answers.sum(axis=1), 1)
    expected = {"cc": [1, 0, 0], "xx": [0, 1, 0], "xc": [0.7, 0.1, 0.2], "cx": [0.1, 0.7, 0.2], "cu": [0.2, 0, 0.8],
                "xu": [0, 0.2, 0.8]}  # fmt: skip
    for corner, shares in expected.items():
        np.testing.assert_allclose(answers.loc[corner].tolist(), shares)
    assert (found["high_clean"] > found["low_clean"]).all()  # also of 0 and 100 %


def test_all_pairs_stand_beside_the_answered_ones():
    table = outcomes({(None, "other"): "p" * 8 + "hh"}, right=[True] * 8 + [False] * 2)
    found = corners(table).query("corner == 'xc'").set_index("pairs")
    assert found["n"].tolist() == [8, 10]
    np.testing.assert_allclose(found["answer_clean"], [1, 0.8])


def test_where_no_pair_is_answered_all_pairs_stand_alone():
    found = corners(outcomes({(None, "other"): "p" * 9}, right=False))
    assert found["pairs"].unique().tolist() == ["all pairs whose two runs answer differently"]


def test_the_indirect_parts_are_transfer_and_disruption_and_each_route_completes_the_other():
    table = experiment(thought=(0.9, 0.4))
    parts = decomposition(table).set_index("contrast")["effect"]
    whole = {
        (direction, metric): pooled(effect(rows[rows["direction"] == direction]), ["metric"])["effect"].iloc[0]
        for metric in ("transfer", "disruption")
        for rows in [measured(table, metric).query("kind == 'thought' and source in ('clean', 'corrupted')")]
        for direction in ("denoising", "noising")
    }
    assert parts["xc − xx"] == pytest.approx(whole["denoising", "transfer"])
    assert parts["cc − cx"] == pytest.approx(whole["noising", "disruption"])
    assert parts["xc − xx"] + parts["cc − xc"] == pytest.approx(1)
    assert parts["cc − cx"] + parts["cx − xx"] == pytest.approx(1)
    assert parts["cc − cx"] - parts["xc − xx"] == pytest.approx(parts["cc − xc − cx + xx"])
