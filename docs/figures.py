"""Draw the README's figure, four corners of several runs: python docs/figures.py runs/tiny runs/bypass"""

import json
import sys
from pathlib import Path

import pandas as pd

from analysis import corner_bars, corners, read_table

HERE = Path(__file__).parent
CARD = HERE.parent / "traces" / "embedded" / "card.json"


def main(*runs: str) -> None:
    """One panel a run, headed by its checkpoint and the accuracy that the card reports of it."""
    card, panels = json.loads(CARD.read_text(encoding="utf-8")), []
    for run in map(Path, runs):
        name = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["model"]["checkpoint"]
        accuracy = card[name]["accuracy_by_steps"]["6"]
        panels.append(corners(read_table(run / "cells.parquet")).assign(model=f"{name} (accuracy {accuracy:.1%})"))
    corner_bars(pd.concat(panels, ignore_index=True)).save(HERE / "corners.png", scale_factor=2)


if __name__ == "__main__":
    main(*sys.argv[1:])
