"""Each site in both directions."""

import pytest

from codi_tracing.analysis.figures.directions import directions_data
from codi_tracing.analysis.statistics.effects import by_site, specific
from tests.support.tables import experiment


def test_both_directions_stand_beside_each_other_as_they_stand_alone():
    table = experiment(layers=(0.9, 0.5, 0.1), pairs=30)
    both = directions_data(table).set_index("layer")
    alone = by_site(specific(table))
    for direction in ("denoising", "noising"):
        own = alone[(alone["direction"] == direction) & (alone["kind"] == "resid")].set_index("layer")
        for name in ("effect", "low", "high"):
            assert both[f"{name}_{direction}"].tolist() == pytest.approx(own[name].tolist())
