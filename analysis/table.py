"""The table of cells: one row per patched run × metric. Its columns, and how it is checked, written and read."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from codi_tracing.analysis.io.atomic import write_whole

SITES = ("latent", "resid", "attn", "mlp", "head", "kv", "thought", "question", "bot")
SEGMENTS = ("thought", "question", "bot")  # whole segments of the cache: they have no layer and no step
DIRECTIONS = ("denoising", "noising")

_NUMBER = pa.Column("Int64", pa.Check.ge(0, error="0 or above"), nullable=True)
_MEASURED = pa.Column("float64", pa.Check.in_range(-1e38, 1e38, error="a finite number, or none"), nullable=True)
_TEXT = pa.Column("str")
SCHEMA = pa.DataFrameSchema(
    {
        "pair_id": _TEXT,
        "cluster_id": _TEXT,
        "edit": pa.Column("str", nullable=True),  # how the pair's questions differ, where that is known
        "protocol": _TEXT,
        "direction": pa.Column("str", pa.Check.isin(DIRECTIONS, error=" or ".join(DIRECTIONS))),
        "source": _TEXT,
        "source_pair": pa.Column("str", nullable=True),
        "draw": _NUMBER,
        "kind": pa.Column("str", pa.Check.isin(SITES, error=f"one of {', '.join(SITES)}")),
        "layer": _NUMBER,
        "layer_last": _NUMBER,
        "step": _NUMBER,
        "step_last": _NUMBER,
        "step_set": pa.Column("str", nullable=True),  # steps that are no range, as 0+2+5
        "head": _NUMBER,
        "freeze": pa.Column("str", nullable=True),
        "knockout": pa.Column("str", nullable=True),  # attention edges knocked out, as answer-question
        "n_latents": _NUMBER,  # steps that the run thinks, where not as many as the model was trained with
        "read_step": _NUMBER,
        "metric": _TEXT,
        "patched": _MEASURED,
        "clean": _MEASURED,
        "corrupted": _MEASURED,
    },
    coerce=True,
    strict=True,
)
COLUMNS = tuple(SCHEMA.columns)
KEYS = COLUMNS[:-3]
SITE_KEYS = (
    "kind", "layer", "layer_last", "step", "step_last", "step_set", "head", "freeze", "knockout", "n_latents", "read_step",
)  # fmt: skip


def empty_table() -> pd.DataFrame:
    """A table without rows."""
    return SCHEMA.validate(pd.DataFrame(columns=list(COLUMNS)))


def check_table(table: pd.DataFrame) -> pd.DataFrame:
    """The same table with its columns in order and of their types; ValueError, in one sentence, where it cannot be."""
    if missing := [name for name in COLUMNS if name not in table]:
        raise ValueError(f"the table lacks the column {missing[0]!r}; wanted {', '.join(COLUMNS)}")
    if unknown := [str(name) for name in table if name not in COLUMNS]:
        first = _cut(unknown[0])
        raise ValueError(f"the table has an unknown column {first!r}; drop it, or keep it in a table of its own")
    try:
        checked = SCHEMA.validate(table[list(COLUMNS)], lazy=True)
    except SchemaErrors as errors:
        raise ValueError(_first_failure(errors.failure_cases)) from None
    repeated = checked.duplicated(subset=list(KEYS))
    if repeated.any():
        first_keys = checked.loc[repeated, list(KEYS)].iloc[0].dropna()
        where = ", ".join(f"{key} {_cut(value)}" for key, value in first_keys.items())
        raise ValueError(
            f"the table has {repeated.sum()} rows whose keys occurred before, the first at {where}; keep one each"
        )
    return checked


def _first_failure(cases: pd.DataFrame) -> str:
    """One sentence about the first value that the schema refused."""
    case = cases.sort_values("failure_case", key=lambda values: values.isna(), kind="stable").iloc[0]
    name, check, found = case["column"], str(case["check"]), _cut(case["failure_case"])
    if check == "not_nullable":
        return f"the table's column {name!r} has an empty row; wanted a value in every row"
    if "dtype" in check:
        return f"the table's column {name!r} holds {found}; wanted values of type {SCHEMA.columns[name].dtype}"
    return f"the table's column {name!r} holds {found}; wanted {check}"


def _cut(value: object) -> str:
    """A value, as much of it as a sentence bears."""
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def write_table(table: pd.DataFrame, path: Path | str) -> Path:
    """Check the table and write it as Parquet, whole or not at all."""
    return write_whole(Path(path), check_table(table).to_parquet(index=False))


def read_table(path: Path | str) -> pd.DataFrame:
    """Read and check a table of cells."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; wanted the table of a run (cells.parquet)")
    try:
        table = pd.read_parquet(path)
    except Exception as error:  # a damaged file makes the libraries raise anything
        raise ValueError(f"{path}: is not a whole Parquet file; run the sweep again to write it") from error
    try:
        return check_table(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
