"""The table of cells as a Parquet file."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from codi_tracing.analysis.io.atomic import write_whole
from codi_tracing.analysis.io.run_folder import TABLE, check_content, recorded_files
from codi_tracing.analysis.table import check_table
from codi_tracing.configs.files import LARGEST_TABLE, read_file


def write_table(table: pd.DataFrame, path: Path | str) -> Path:
    """Check the table and write it whole, or not at all."""
    return write_whole(Path(path), check_table(table).to_parquet(index=False))


def parse_parquet(content: bytes) -> pd.DataFrame:
    """The table in the bytes of a Parquet file; ValueError if it unpacks to more than `LARGEST_TABLE` bytes.

    A column of equal values takes a few bytes in the file, however many and long they are.
    """
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.parquet as pq

    file = pq.ParquetFile(io.BytesIO(content))
    fields, rows = list(file.schema_arrow), file.metadata.num_rows
    if nested := [field.name for field in fields if pa.types.is_nested(field.type)]:
        raise ValueError(f"its column {nested[0]!r} holds lists or objects")
    if rows * max(1, len(fields)) * 8 > LARGEST_TABLE:
        raise ValueError(f"it unpacks to {rows:,} rows")
    texts = [field.name for field in fields if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    for column in pq.read_table(io.BytesIO(content), read_dictionary=texts).columns:
        for chunk in column.chunks if pa.types.is_dictionary(column.type) else ():
            if pa.types.is_string(chunk.dictionary.type) or pa.types.is_large_string(chunk.dictionary.type):
                lengths = pa.compute.binary_length(chunk.dictionary).cast(pa.int64()).take(chunk.indices)
                if (pa.compute.sum(lengths).as_py() or 0) > LARGEST_TABLE:
                    raise ValueError(f"a column of text unpacks to more than {LARGEST_TABLE:,} bytes")
    return pd.read_parquet(io.BytesIO(content))


def read_table(path: Path | str) -> pd.DataFrame:
    """Read and check a table of cells; in a finished run's folder it must be the table that the run wrote."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the table of a run (cells.parquet)")
    content = read_file(path, LARGEST_TABLE)
    if path.name == TABLE:
        check_content(path, content, recorded_files(path.parent))
    try:
        table = parse_parquet(content)
        for name in table.select_dtypes(["object", "string"]):  # broken text would be found only where it is used
            table[name].dropna().unique().tolist()
    except Exception as error:  # the errors of a damaged file are of any class
        raise ValueError(f"{path}: is not a whole Parquet file; run the sweep again to write it") from error
    try:
        return check_table(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
