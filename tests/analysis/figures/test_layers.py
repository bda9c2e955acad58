"""Effect by layer."""

import pandas as pd
import pytest

from codi_tracing.analysis.figures.heatmap import heatmap_chart
from codi_tracing.analysis.figures.layers import layers_chart, layers_data
from codi_tracing.analysis.statistics.effects import by_site, effect
from codi_tracing.analysis.statistics.measures import measured
from tests.support.charts import drawn
from tests.support.tables import experiment


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return experiment(layers=(0.2, 0.9, 0.5), pairs=12)


def test_the_layer_curve_lies_between_the_unrelated_donor_and_the_ceiling(table):
    rows = layers_data(table).set_index(["written", "direction", "layer"])["effect"].sort_index()
    assert rows["one layer", "denoising", 1] == pytest.approx(0.9, abs=0.1)
    assert rows["one layer, unrelated donor", "noising"].mean() == pytest.approx(0, abs=0.1)
    graded = layers_data(table, "logit_difference").set_index(["written", "direction", "layer"])["effect"].sort_index()
    assert graded["one layer", "denoising", 1] == pytest.approx(0.9, abs=0.1)  # plain: its control is not subtracted
    assert graded["one layer, unrelated donor", "noising"].mean() == pytest.approx(0.3, abs=0.1)
    ceilings = rows["whole thought (ceiling)", "denoising"]
    assert ceilings.nunique() == 1
    assert ceilings.index.tolist() == [0, 1, 2]


def by_edit(table: pd.DataFrame) -> pd.DataFrame:
    """The same table, a third of whose pairs change an operator word and the others a number."""
    return table.assign(edit=table["pair_id"].map(lambda pair: "operator_word" if int(pair) % 3 == 0 else "operand"))


def test_split_by_edit_each_panel_is_the_curve_of_its_own_pairs(table):
    split = layers_data(by_edit(table), split="edit")
    alone = layers_data(table[table["pair_id"].map(int) % 3 == 0])
    part = split[split["edit"] == "operator_word"].reset_index(drop=True)
    pd.testing.assert_frame_equal(part[alone.columns], alone, check_dtype=False)
    titles = [panel["title"] for panel in drawn(layers_chart(split))["hconcat"]]
    assert titles == ["operand (n = 8)", "operator word (n = 4)"]
    assert (
        len(heatmap_chart(by_site(effect(measured(by_edit(table))), direction="denoising", split="edit")).concat) == 2
    )


def test_a_table_without_edits_cannot_be_split_by_edit(table):
    with pytest.raises(ValueError, match="no pair has the field 'edit', so there is nothing to split by"):
        layers_data(table, split="edit")
    with pytest.raises(ValueError, match="the table has no column 'mood' to split by; it has pair_id"):
        by_site(effect(measured(table)), split="mood")


def test_a_table_without_single_layers_is_refused(table):
    with pytest.raises(ValueError, match="no rows of one layer's residual"):
        layers_data(table[table["kind"] == "thought"])
