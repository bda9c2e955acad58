"""The table of cells as a Parquet file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from codi_tracing.analysis.io.atomic import write_whole
from codi_tracing.analysis.table import check_table


def write_table(table: pd.DataFrame, path: Path | str) -> Path:
    """Check the table and write it whole, or not at all."""
    return write_whole(Path(path), check_table(table).to_parquet(index=False))


def read_table(path: Path | str) -> pd.DataFrame:
    """Read and check a table of cells."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the table of a run (cells.parquet)")
    try:
        table = pd.read_parquet(path)
        for name in table.select_dtypes(["object", "string"]):  # broken text would be found only where it is used
            table[name].dropna().unique().tolist()
    except Exception as error:  # the errors of a damaged file are of any class
        raise ValueError(f"{path}: is not a whole Parquet file; run the sweep again to write it") from error
    try:
        return check_table(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
