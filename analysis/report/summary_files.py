"""The conclusions of a finished run as files: `summary.json` for programs, `sites.csv` with every site."""

from __future__ import annotations

from pathlib import Path

from codi_tracing.analysis.io.atomic import write_json, write_whole
from codi_tracing.analysis.statistics.results import Results

SUMMARY, SITES = "summary.json", "sites.csv"


def write_summary(folder: Path, results: Results) -> None:
    """Write both files into a run folder."""
    write_json(folder / SUMMARY, results.summary)
    write_whole(folder / SITES, results.all_sites().to_csv(index=False).encode())
