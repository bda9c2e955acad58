"""How a sweep's time and peak memory grow with cells, pairs and the questions' length; the exponents, fitted.

On a CPU every point is a process of its own, and its memory is what its resident set grows by after loading (what is
loaded late, some tens of MiB, among it). On a GPU it is what is allocated at most, above the weights.
"""

from __future__ import annotations

import json
import math
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from codi_tracing.patching.engine.sweep import sweep_cells
from codi_tracing.patching.interventions.cells import Cell, make_cells
from codi_tracing.patching.interventions.sites import Site
from codi_tracing.patching.interventions.sources import other
from codi_tracing.patching.pairs.tokenized import TokenizedPair
from codi_tracing.traces.model.codi_model import CodiModel
from tests.bench.sizes import ROOT, SIZES, load, pairs_of
from tests.bench.timing import median, seconds

AXES = {"cells": (7, 14, 28, 56, 112, 224, 448), "pairs": (4, 8, 16, 32, 64), "tokens": (30, 60, 120, 240)}
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Point(NamedTuple):
    """Cells a pair, pairs, tokens a question (for a random checkpoint)."""

    cells: int
    pairs: int
    tokens: int


BASE = Point(28, 4, 60)


def all_cells(model: CodiModel) -> list[Cell]:
    """Windows of layers at one or all steps, of three kinds, in both directions."""
    layers, steps = range(model.n_layers), [None, *range(model.n_latents)]
    sites = [
        Site(kind, first, last, step, step)
        for kind in ("resid", "attn", "mlp")
        for first in layers
        for last in layers[first:]
        for step in steps
    ]
    return make_cells(sites, (other,), ("denoising", "noising"))


def some(model: CodiModel, count: int, seed: int = 0) -> list[Cell]:
    """The first `count` of them in one random order."""
    return random.Random(seed).sample(all_cells(model), count)


def peak() -> int:
    """The peak memory of this process in bytes, without its parent's."""
    for line in STATUS.read_text().splitlines() if STATUS.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Count from here on, where the system can; else loading counts too."""
    if FORGET.exists():
        FORGET.write_text("5")


def measure_point(
    model: CodiModel, ready: list[TokenizedPair], count: int, repeats: int, **options: Any
) -> dict[str, Any]:
    """Median seconds, and the peak in bytes above the memory before the first run, which also warms up."""

    def run(cells: list[Cell]) -> Any:
        return sweep_cells(model, ready, cells, metrics=["logit_difference"], **options)

    gpu, cells = model.device.type == "cuda", some(model, count)
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
    else:
        forget_peak()
        before = peak()
    run(cells)
    grown = (torch.cuda.max_memory_allocated(model.device) if gpu else peak()) - before
    return {"seconds": median(seconds(lambda: run(cells), model.device)[0] for _ in range(repeats)), "bytes": grown}


def points_of(model: CodiModel, random_questions: bool) -> dict[str, list[Point]]:
    """The points of every axis, as far as the model has different cells; shipped questions are as long as they are."""
    axes = {axis: values for axis, values in AXES.items() if random_questions or axis != "tokens"}
    axes["cells"] = tuple(value for value in axes["cells"] if value <= len(all_cells(model)))
    return {axis: [BASE._replace(**{axis: value}) for value in values] for axis, values in axes.items()}


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of log value over log size: 1 is linear."""
    x, y = [math.log(size) for size in sizes], [math.log(max(value, 1e-9)) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def measure_growth(
    name: str, folder: Path, model: CodiModel, repeats: int, options: dict[str, Any], axes: dict[str, list[Point]]
) -> dict[str, Any]:
    """Seconds and bytes of every point, and by axis the exponents of both."""
    dtype, results = str(model.dtype).removeprefix("torch."), {}
    for axis, points in axes.items():
        measured = []
        for point in points:
            if model.device.type == "cpu":
                one = in_a_process(name, folder, dtype, point, repeats, options)
            else:
                ready = pairs_of(SIZES[name], model, point.pairs, point.tokens)
                one = measure_point(model, ready, point.cells, repeats, **options)
            measured.append({axis: getattr(point, axis), **one})
        sizes = [one[axis] for one in measured]
        slopes = {what: exponent(sizes, [one[what] for one in measured]) for what in ("seconds", "bytes")}
        results[axis] = {"points": measured, "exponents": slopes}
    return results


def growth_text(results: dict[str, Any]) -> str:
    """The points in lines, each axis with its exponents."""
    lines = [f"growth of ours, otherwise {BASE.cells} cells a pair, {BASE.pairs} pairs, about {BASE.tokens} tokens"]
    for axis, about in results.items():
        slopes = about["exponents"]
        lines.append(f"  {axis}: time grows as {axis}^{slopes['seconds']:.2f}, memory as {axis}^{slopes['bytes']:.2f}")
        lines += [
            f"    {point[axis]:>5} {axis:<7} {point['seconds']:>9.3f} s  {point['bytes'] / 2**20:>9.1f} MiB"
            for point in about["points"]
        ]
    return "\n".join(lines)


def in_a_process(size: str, folder: Path, dtype: str, point: Point, repeats: int, options: dict) -> dict[str, Any]:
    """One point on the CPU, in a process of its own."""
    request = json.dumps([size, str(folder), dtype, point, repeats, options])
    command = [sys.executable, "-m", "tests.bench.growth", request]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{point} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(request: str) -> None:
    """Measure the one point that was asked for and print it."""
    name, folder, dtype, point, repeats, options = json.loads(request)
    cells, pairs, tokens = point
    model = load(SIZES[name], Path(folder), "cpu", dtype)
    ready = pairs_of(SIZES[name], model, pairs, tokens)
    print(json.dumps(measure_point(model, ready, cells, repeats, **options)))


if __name__ == "__main__":
    main(sys.argv[1])
