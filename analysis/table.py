"""The table of cells: one row per patched run × metric. Its columns, and its check."""

from __future__ import annotations

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from codi_tracing.configs.vocabulary import DIRECTIONS, SITE_KINDS

_NUMBER = pa.Column("Int64", pa.Check.ge(0, error="0 or above"), nullable=True)
_MEASURED = pa.Column("float64", pa.Check.in_range(-1e38, 1e38, error="a finite number, or none"), nullable=True)
_TEXT = pa.Column("str")
SCHEMA = pa.DataFrameSchema(
    {
        "pair_id": _TEXT,
        "cluster_id": _TEXT,
        "edit": pa.Column("str", nullable=True),  # how the pair's questions differ, if known
        "protocol": _TEXT,
        "direction": pa.Column("str", pa.Check.isin(list(DIRECTIONS), error=" or ".join(DIRECTIONS))),
        "source": _TEXT,
        "source_pair": pa.Column("str", nullable=True),
        "draw": _NUMBER,
        "kind": pa.Column("str", pa.Check.isin(list(SITE_KINDS), error=f"one of {', '.join(SITE_KINDS)}")),
        "layer": _NUMBER,
        "layer_last": _NUMBER,
        "step": _NUMBER,
        "step_last": _NUMBER,
        "step_set": pa.Column("str", nullable=True),  # steps that are not a range, as 0+2+5
        "head": _NUMBER,
        "freeze": pa.Column("str", nullable=True),
        "knockout": pa.Column("str", nullable=True),  # attention edges knocked out, as answer-question
        "n_latents": _NUMBER,  # latent steps of the run, if not as many as in training
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
CELL_KEYS = COLUMNS[:-3]
SITE_KEYS = CELL_KEYS[CELL_KEYS.index("kind") : CELL_KEYS.index("metric")]


def empty_table() -> pd.DataFrame:
    """A table without rows."""
    return SCHEMA.validate(pd.DataFrame(columns=list(COLUMNS)))


def check_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its columns in order and of their types; ValueError, in one sentence, if it is not valid."""
    if missing := [name for name in COLUMNS if name not in table]:
        raise ValueError(f"the table lacks the column {missing[0]!r}; expected {', '.join(COLUMNS)}")
    if unknown := [str(name) for name in table if name not in COLUMNS]:
        first = _shorten(unknown[0])
        raise ValueError(f"the table has an unknown column {first!r}; drop it, or keep it in a table of its own")
    try:
        checked = SCHEMA.validate(table[list(COLUMNS)], lazy=True)
    except SchemaErrors as errors:
        raise ValueError(_first_failure(errors.failure_cases)) from None
    repeated = checked.duplicated(subset=list(CELL_KEYS))
    if repeated.any():
        first_keys = checked.loc[repeated, list(CELL_KEYS)].iloc[0].dropna()
        where = ", ".join(f"{key} {_shorten(value)}" for key, value in first_keys.items())
        raise ValueError(
            f"the table has {repeated.sum()} rows whose keys occurred before, the first at {where}; keep one each"
        )
    return checked


def _first_failure(cases: pd.DataFrame) -> str:
    """One sentence about the first invalid value."""
    case = cases.sort_values("failure_case", key=lambda values: values.isna(), kind="stable").iloc[0]
    name, check, value = case["column"], str(case["check"]), _shorten(case["failure_case"])
    if check == "not_nullable":
        return f"the table's column {name!r} has an empty row; expected a value in every row"
    if "dtype" in check:
        return f"the table's column {name!r} holds {value}; expected values of type {SCHEMA.columns[name].dtype}"
    return f"the table's column {name!r} holds {value}; expected {check}"


def _shorten(value: object) -> str:
    """The first 200 characters of a value."""
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
