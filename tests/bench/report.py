"""The benchmark in plain text: a table a size, what the numbers agree to, and whether the goals are reached."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from tests.bench.timing import Timed

COLUMNS = ("", "variant", "cells timed", "ms/cell", "cells/s", "× (a)", "× (d)", "× floor")
FASTER_THAN_ALONE, OVER_HOOKS, OVER_FLOOR = 20.0, 1.10, 2.0


def machine(device: str, dtype: str) -> str:
    """One line on what was measured on."""
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    return f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, {dtype}"


def processor() -> str:
    """The CPU's name and count, from where Linux keeps it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'CPU'} ({os.cpu_count()} cores)"


def rows_of(variants: list[Timed], cells: int, floors: dict[str, float]) -> list[dict[str, Any]]:
    """The table's rows: every variant, then the floors. Ratios are of seconds: above 1 is slower than the reference."""
    taken = {variant.name: variant.seconds for variant in variants}
    about = [(v.name, v.what, v.cells, v.seconds) for v in variants]
    about += [("", name, 0, seconds) for name, seconds in floors.items()]
    floor = next(iter(floors.values()), None)
    return [
        {
            "name": name,
            "what": what,
            "cells_timed": timed,
            "ms_per_cell": 1e3 * seconds / cells,
            "cells_per_second": cells / seconds,
            "to_a": seconds / taken["a"],
            "to_d": seconds / taken["d"],
            "to_floor": None if floor is None else seconds / floor,
        }
        for name, what, timed, seconds in about
    ]


def table(rows: list[dict[str, Any]], cells: int) -> str:
    """The rows in columns."""
    lines = [COLUMNS]
    for row in rows:
        timed = row["cells_timed"]
        scaled = "" if not timed else str(timed) if timed == cells else f"{timed} of {cells}, scaled"
        numbers = [number(row[key]) for key in ("ms_per_cell", "cells_per_second", "to_a", "to_d", "to_floor")]
        lines.append((f"({row['name']})" if row["name"] else "", row["what"], scaled, *numbers))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        [
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else f"{value:.1e}"


def goals(rows: list[dict[str, Any]], gpu: bool) -> dict[str, str]:
    """Each goal in words, with what was measured and whether it is reached."""
    by_name = {row["name"]: row for row in rows}
    faster, over = 1 / by_name["d"]["to_a"], 1 / by_name["c"]["to_d"]
    floor = by_name["d"]["to_floor"]
    checked = {
        f"ours at least {FASTER_THAN_ALONE:.0f} times as fast as hooks, one cell at a time (a)": (
            f"{faster:.1f} times", faster >= FASTER_THAN_ALONE),
        "ours within 10 % of hooks batched alike (c)": (f"{over:.2f} times its time", over <= OVER_HOOKS),
    }  # fmt: skip
    if gpu:
        checked[f"ours at most {OVER_FLOOR:.0f} times the floor"] = (f"{floor:.2f} times", floor <= OVER_FLOOR)
    return {goal: f"{what}, {'reached' if met else 'not reached'}" for goal, (what, met) in checked.items()}
