"""The four corners drawn."""

import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.figures.corners import corners_chart
from codi_tracing.analysis.statistics.corners import corners
from tests.support.charts import drawn
from tests.support.tables import experiment


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return experiment(layers=(0.2, 0.9, 0.5), pairs=12)


def test_models_are_drawn_side_by_side_and_the_shares_of_each_corner_add_up(table):
    two = pd.concat(
        [corners(table).assign(model="thought"), corners(experiment(thought=(0, 0))).assign(model="bypass")]
    )
    spec = drawn(corners_chart(two))
    values = pd.DataFrame(next(iter(spec["datasets"].values())))
    assert spec["facet"]["column"]["sort"] == ["thought", "bypass"]
    np.testing.assert_allclose(values.groupby(["model", "corner"])["share"].sum(), 1)


def test_corners_without_answers_are_not_drawn(table):
    with pytest.raises(ValueError, match="no rows of metric 'gives_clean'; sweep it too"):
        corners_chart(corners(table[table["metric"] == "logit_difference"]))
