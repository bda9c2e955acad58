"""The table of cells as a file."""

import pandas as pd
import pytest

from codi_tracing.analysis.io.table_file import read_table, write_table
from codi_tracing.analysis.table import check_table
from tests.support.tables import one_row


def test_a_table_read_from_its_file_equals_the_written_one(tmp_path):
    written = check_table(
        pd.concat([one_row(), one_row(kind="thought", layer=None, layer_last=None, patched=float("nan"))])
    )
    write_table(written, tmp_path / "cells.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "cells.parquet"), written.reset_index(drop=True))
    assert [file.name for file in tmp_path.iterdir()] == ["cells.parquet"]


def test_missing_damaged_and_foreign_files_have_errors_of_their_own(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file; expected the table of a run"):
        read_table(tmp_path / "cells.parquet")
    write_table(one_row(), tmp_path / "cells.parquet")
    (tmp_path / "half.parquet").write_bytes((tmp_path / "cells.parquet").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"half.parquet: is not a whole Parquet file"):
        read_table(tmp_path / "half.parquet")
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other.parquet: the table lacks the column 'pair_id'"):
        read_table(tmp_path / "other.parquet")


def test_an_invalid_table_leaves_the_old_file(tmp_path):
    path = write_table(one_row(), tmp_path / "cells.parquet")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="unknown column"):
        write_table(one_row().assign(extra=1), path)
    assert path.read_bytes() == before
