"""The ceiling: the specific transfer of the whole thought, with clusters as its unit."""

import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.statistics.ceiling import ceiling, unrelated_disruption
from tests.support.tables import experiment, outcomes


def test_pairs_of_one_cluster_count_once():
    alone = experiment(pairs=40, noise=0.3)
    copies = [alone] + [alone.assign(pair_id=alone["pair_id"] + f" copy {i}") for i in range(3)]
    together = pd.concat(copies, ignore_index=True)  # every cluster now holds four equal pairs
    once, fourfold = ceiling(alone), ceiling(together)
    assert (fourfold.n, fourfold.clusters) == (160, 40)
    np.testing.assert_allclose(fourfold[:3], once[:3])


def test_one_cluster_has_no_interval():
    found = ceiling(experiment(pairs=3, size=3))
    assert found.clusters == 1
    assert np.isnan([found.low, found.high]).all()
    assert "[" not in str(found)


def test_a_ceiling_needs_the_whole_thought():
    table = experiment()
    with pytest.raises(ValueError, match="no rows of site 'thought' in direction 'denoising'"):
        ceiling(table[table["kind"] != "thought"])


def test_what_an_unrelated_thought_brings_by_itself_is_no_part_of_the_ceiling():
    table = outcomes({(None, "other"): "p" * 10, (None, "unrelated"): "ppoooooooo"})
    assert ceiling(table).effect == pytest.approx(0.8)
    assert unrelated_disruption(table).effect == pytest.approx(1)
