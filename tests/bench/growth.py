"""How time and peak memory of our sweep grow, a process for each point, since a process never gives memory back."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from patching.cells import grid
from patching.engine import sweep_cells
from patching.sites import sitewise
from patching.sources import other
from tests.bench.sizes import SIZES, Size, load, pairs_of

SWEEPS = {
    "cells": [{"cells": cells, "pairs": 8} for cells in (14, 28, 56, 112, 224, 448)],
    "pairs": [{"pairs": pairs, "cells": 28} for pairs in (4, 8, 16, 32, 64)],
    "tokens": [{"tokens": tokens, "pairs": 8, "cells": 56} for tokens in (30, 60, 120, 240)],
}


def growth_table(size: Size, folder: Path, device: str, dtype: str) -> list[dict[str, Any]]:
    """Time and memory over cells of a pair, pairs, and question tokens, with the slope of their logarithms."""
    load(size, folder, "cpu", dtype)  # written once
    rows = []
    for what, points in SWEEPS.items():
        found = [point(size, folder, device, dtype, values) for values in points]
        print(f"\n{what:>8}{'seconds':>10}{'peak GiB':>10}{'estimate':>10}")
        for values, (seconds, gib, estimate) in zip(points, found, strict=True):
            print(f"{values[what]:8}{seconds:10.2f}{gib:10.3f}{estimate:10.3f}")
            rows.append({"over": what, **values, "seconds": seconds, "peak_gib": gib, "estimate_gib": estimate})
        print(f"   slope{slope([p[what] for p in points], [f[0] for f in found]):10.2f}")
    return rows


def slope(over: list[float], values: list[float]) -> float:
    """Least-squares slope of the logarithms: 1 is linear."""
    x, y = [math.log(v) for v in over], [math.log(v) for v in values]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def point(size: Size, folder: Path, device: str, dtype: str, values: dict[str, int]) -> tuple[float, float, float]:
    """Seconds, peak GiB beside the weights, and what was estimated, measured in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.growth", size.name, str(folder), device, dtype, json.dumps(values)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def measure_point(name: str, folder: str, device: str, dtype: str, values: str) -> None:
    wanted = json.loads(values)
    size = SIZES[name]
    model = load(size, Path(folder), device, dtype)
    ready = pairs_of(size, model, wanted["pairs"], wanted.get("tokens"))
    places = [cell for kind in ("resid", "mlp", "attn", "kv") for cell in sitewise(model, kind)]
    sites = grid([*places, *sitewise(model, "head")][: wanted["cells"]], (other,), ("denoising",))
    assert len(sites) == wanted["cells"], f"there are {len(sites)} places only"
    sizes = []

    def keep(due: Any, compute: Any) -> Any:
        sizes.append(due.sizes.gib)
        return compute()

    sweep_cells(model, ready[:2], sites[:4], metrics=["logit_difference"])  # what is made once
    before = resident(device)
    start = time.perf_counter()
    sweep_cells(model, ready, sites, metrics=["logit_difference"], keep=keep)
    if device == "cuda":
        torch.cuda.synchronize()
    taken = time.perf_counter() - start
    print(json.dumps([taken, (resident(device) - before) / 2**30, sizes[0]]))


def resident(device: str) -> float:
    """The most memory that this process has held so far, in bytes."""
    if device.startswith("cuda"):
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


if __name__ == "__main__":
    measure_point(*sys.argv[1:])
