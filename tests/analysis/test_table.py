"""The table of cells: what it accepts, and what it says of what it refuses."""

import pandas as pd
import pytest

from codi_tracing.analysis.io.table_file import read_table, write_table
from codi_tracing.analysis.table import COLUMNS, KEYS, SITE_KEYS, check_table


def one_row(**values) -> pd.DataFrame:
    """A table of one cell of one metric."""
    row = dict.fromkeys(COLUMNS) | {
        "pair_id": "7",
        "cluster_id": "ducks",
        "protocol": "latent_loop",
        "direction": "denoising",
        "source": "clean",
        "source_pair": "7",
        "kind": "resid",
        "layer": 3,
        "layer_last": 3,
        "metric": "logit_difference",
        "patched": 1.0,
        "clean": 2.0,
        "corrupted": -2.0,
    }
    return pd.DataFrame([row | values])


def test_a_table_comes_back_from_its_file_as_it_was_written(tmp_path):
    written = check_table(
        pd.concat([one_row(), one_row(site="thought", layer=None, layer_last=None, patched=float("nan"))])
    )
    write_table(written, tmp_path / "cells.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "cells.parquet"), written.reset_index(drop=True))
    assert [file.name for file in tmp_path.iterdir()] == ["cells.parquet"]  # no temporary file is left


def test_columns_come_in_one_order_and_with_one_type_each():
    checked = check_table(one_row(pair_id=7, patched=1)[list(reversed(COLUMNS))])
    assert tuple(checked) == COLUMNS
    assert checked["pair_id"].iloc[0] == "7"
    assert {str(checked[name].dtype) for name in ("layer", "step", "head", "draw")} == {"Int64"}
    assert str(checked["patched"].dtype) == "float64"
    assert set(SITE_KEYS) < set(KEYS)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (one_row().drop(columns="step_last"), "lacks the column 'step_last'"),
        (one_row().assign(recovery=0.5), "unknown column 'recovery'"),
        (one_row(site="residual"), "column 'site' holds residual; wanted one of latent, resid"),
        (one_row(direction="forward"), "column 'direction' holds forward; wanted denoising or noising"),
        (one_row(layer=-1), "column 'layer' holds -1; wanted 0 or above"),
        (one_row(layer=0.5), "column 'layer' holds float64; wanted values of type Int64"),
        (one_row(metric=None), "column 'metric' has an empty row; wanted a value in every row"),
        (one_row(patched="high"), "column 'patched' holds high; wanted values of type float64"),
        (one_row(patched=float("inf")), "column 'patched' holds inf; wanted a finite number, or none"),
        (pd.concat([one_row(), one_row(patched=3)]), "1 rows whose keys occurred before, the first at pair_id 7"),
    ],
)
def test_a_bad_table_is_refused_in_one_sentence(table, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        check_table(table)
    assert "\n" not in str(caught.value)


def test_a_missing_a_broken_and_a_foreign_file_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file; wanted the table of a run"):
        read_table(tmp_path / "cells.parquet")
    write_table(one_row(), tmp_path / "cells.parquet")
    (tmp_path / "half.parquet").write_bytes((tmp_path / "cells.parquet").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"half.parquet: is not a whole Parquet file"):
        read_table(tmp_path / "half.parquet")
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other.parquet: the table lacks the column 'pair_id'"):
        read_table(tmp_path / "other.parquet")


def test_a_table_that_is_refused_leaves_the_old_file(tmp_path):
    path = write_table(one_row(), tmp_path / "cells.parquet")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="unknown column"):
        write_table(one_row().assign(extra=1), path)
    assert path.read_bytes() == before
