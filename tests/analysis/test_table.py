"""The table of cells: its columns, and the errors of invalid tables."""

import pandas as pd
import pytest

from codi_tracing.analysis.table import CELL_KEYS, COLUMNS, SITE_KEYS, check_table
from tests.support.tables import one_row

# no temporary file is left


def test_columns_have_one_order_and_one_type_each():
    checked = check_table(one_row(pair_id=7, patched=1)[list(reversed(COLUMNS))])
    assert tuple(checked) == COLUMNS
    assert checked["pair_id"].iloc[0] == "7"
    assert {str(checked[name].dtype) for name in ("layer", "step", "head", "draw")} == {"Int64"}
    assert str(checked["patched"].dtype) == "float64"
    assert set(SITE_KEYS) < set(CELL_KEYS)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (one_row().drop(columns="step_last"), "lacks the column 'step_last'"),
        (one_row().assign(recovery=0.5), "unknown column 'recovery'"),
        (one_row(kind="residual"), "column 'kind' holds residual; expected one of latent, resid"),
        (one_row(direction="forward"), "column 'direction' holds forward; expected denoising or noising"),
        (one_row(layer=-1), "column 'layer' holds -1; expected 0 or above"),
        (one_row(layer=0.5), "column 'layer' holds float64; expected values of type Int64"),
        (one_row(metric=None), "column 'metric' has an empty row; expected a value in every row"),
        (one_row(patched="high"), "column 'patched' holds high; expected values of type float64"),
        (one_row(patched=float("inf")), "column 'patched' holds inf; expected a finite number, or none"),
        (pd.concat([one_row(), one_row(patched=3)]), "1 rows whose keys occurred before, the first at pair_id 7"),
    ],
)
def test_a_bad_table_is_refused_in_one_sentence(table, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        check_table(table)
    assert "\n" not in str(caught.value)
