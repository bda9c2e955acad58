"""The table of cells as a Parquet file."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from codi_tracing.analysis.io.atomic import write_whole
from codi_tracing.analysis.io.run_folder import TABLE, check_content, recorded_files
from codi_tracing.analysis.table import check_table


def write_table(table: pd.DataFrame, path: Path | str) -> Path:
    """Check the table and write it whole, or not at all."""
    return write_whole(Path(path), check_table(table).to_parquet(index=False))


def read_table(path: Path | str) -> pd.DataFrame:
    """Read and check a table of cells; in a finished run's folder it must be the table that the run wrote."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the table of a run (cells.parquet)")
    content = path.read_bytes()
    if path.name == TABLE:
        check_content(path, content, recorded_files(path.parent))
    try:
        table = pd.read_parquet(io.BytesIO(content))
        for name in table.select_dtypes(["object", "string"]):  # broken text would be found only where it is used
            table[name].dropna().unique().tolist()
    except Exception as error:  # the errors of a damaged file are of any class
        raise ValueError(f"{path}: is not a whole Parquet file; run the sweep again to write it") from error
    try:
        return check_table(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
