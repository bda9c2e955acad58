"""The conclusions of a finished run as files: `summary.json` for programs, `sites.csv` with every site."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from codi_tracing.analysis.io.atomic import write_json, write_whole


def write_summary(folder: Path, summary: Mapping[str, Any], sites: pd.DataFrame) -> None:
    """Write `Results.summary` and `Results.all_sites()` into a run folder."""
    write_json(folder / "summary.json", summary)
    write_whole(folder / "sites.csv", without_formulas(sites).to_csv(index=False).encode())


def without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """The table with an apostrophe before text that a spreadsheet would run as a formula."""
    texts = table.select_dtypes(["object", "string", "category"])
    return table.assign(**{str(name): texts[name].map(_as_text) for name in texts})


def _as_text(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
