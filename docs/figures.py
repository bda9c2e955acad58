"""Draw the README's figure from two run folders: python docs/figures.py runs/tiny runs/bypass"""

import sys
from pathlib import Path

import pandas as pd

from analysis import corner_bars, corners, read_table


def main(*runs: str) -> None:
    """The four corners of each run's model, side by side."""
    tables = {Path(run).name: read_table(Path(run) / "cells.parquet") for run in runs}
    names = {"tiny": "thought"}  # configs/tiny.toml runs the checkpoint `thought`
    found = [corners(table).assign(model=names.get(name, name)) for name, table in tables.items()]
    corner_bars(pd.concat(found, ignore_index=True)).save(Path(__file__).with_name("corners.png"), scale_factor=2)


if __name__ == "__main__":
    main(*sys.argv[1:])
