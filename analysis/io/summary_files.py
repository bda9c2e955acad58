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
    write_whole(folder / "sites.csv", sites.to_csv(index=False).encode())
