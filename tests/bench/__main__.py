"""The command: `python -m tests.bench --help`."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.bench.floor import rate_of, work_of
from tests.bench.growth import growth_table
from tests.bench.job import Job, job_of
from tests.bench.sizes import SIZES, Size, load, pairs_of
from tests.bench.timing import Timed, measure
from tests.bench.variants import (
    Blocks,
    decoding_variants,
    differences,
    grid_variants,
    other_answers,
    some_cells,
    spread,
)
from traces.merge import merge_lora


def main() -> None:
    options = parsed()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    print(machine(device))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.size:
            size = SIZES[name]
            if name == "1b" and device == "cpu" and not options.force:
                sys.exit("the size 1b is for a GPU, where it takes a minute; --force runs it here, for days")
            place = Path(folder) / name
            if options.growth:
                results.append({"size": name, "growth": growth_table(size, place, device, options.dtype)})
            else:
                results.append(measured(size, place, device, options))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(device), "results": results}, indent=2) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["embedded", "mid"])
    parser.add_argument("--device", help="cpu, cuda, …; a GPU where there is one")
    parser.add_argument("--dtype", default="auto", help="of the checkpoint, unless float32, bfloat16 or float16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pairs", type=int, help="instead of the size's own number")
    parser.add_argument("--alone", type=int, default=40, help="cells that the variants of one cell at a time run")
    parser.add_argument("--growth", action="store_true", help="time and memory over cells, pairs and question length")
    parser.add_argument("--profile", action="store_true", help="where our time goes")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--json", type=Path, help="save the numbers there")
    return parser.parse_args()


def measured(size: Size, folder: Path, device: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time every variant of one size, compare their numbers, print the tables."""
    model = load(size, folder, device, options.dtype)
    ready = pairs_of(size, model, options.pairs)
    model, merge = merge_lora(model, [p.pair.clean.question for p in ready[:16]])
    job = job_of(model, ready)
    chosen, blocks = some_cells(job, options.alone), Blocks()
    tokens = [p.tokens for p in ready]
    print(
        f"\n{size.name}: {job.cells} cells = {len(ready)} pairs × {model.n_layers} layers × 7 step sets, "
        f"{min(tokens)} to {max(tokens)} question tokens, {model.dtype}, LoRA {'merged' if merge.merged else 'apart'} "
        f"(merging changes a logit by {merge.largest_change:.1e})"
    )
    work, rate = work_of(job), rate_of(job, 4096)
    floor = work.total / rate
    grid = grid_variants(job, chosen, blocks)
    measure(grid, options.repeats)
    print(table(job, grid, floor))
    late = work_of(job, late=True).total / work.total
    print(
        f"floor: {work.total:.3g} FLOP at {rate:.3g} a second; {late:.0%} of it where cells begin as they are written"
    )
    found, apart = differences(grid), spread(grid[-1].numbers)
    worst = max(found, key=found.__getitem__)
    print(f"largest difference of a number: {found[worst]:.1e} ({worst}); a pair's cells lie {apart:.2g} apart")
    if model.dtype == torch.float32 and found[worst] > size.tolerance:
        sys.exit(f"the variants differ by {found[worst]:.1e}, allowed {size.tolerance:.0e}: nothing was measured")
    decoding = decoding_variants(job, chosen, blocks)
    measure(decoding, options.repeats)
    print("\nwith greedy decoding of every answer:\n" + table(job, decoding, None))
    if model.dtype == torch.float32 and (others := other_answers(decoding)):
        sys.exit(f"{others} cells decode different numbers: nothing was measured")
    if options.profile:
        print(profiled(grid[-1]))
    goals(grid, floor, device)
    return {
        "size": size.name, "cells": job.cells, "floor": floor, "differences": found,
        "seconds": {variant.name: variant.taken for variant in grid},
        "decoding": {variant.name: variant.taken for variant in decoding},
        "peak_gib": peak(job),
    }  # fmt: skip


def table(job: Job, variants: list[Timed], floor: float | None) -> str:
    """One line a variant."""
    seconds = {variant.name: variant.seconds for variant in variants}
    lines = [f"{'':40}{'timed':>7}{'ms/cell':>10}{'cells/s':>10}{'× (a)':>9}{'× (d)':>9}{'/ floor':>9}"]
    for v in variants:
        shown = f"{v.seconds / floor:9.1f}" if floor else ""
        lines.append(
            f"({v.name:2}) {v.what:35}{v.cells:7}{1000 * v.seconds / job.cells:10.2f}{job.cells / v.seconds:10.1f}"
            f"{seconds['a'] / v.seconds:9.1f}{seconds['d'] / v.seconds:9.2f}{shown}"
        )
    return "\n".join(lines)


def goals(variants: list[Timed], floor: float, device: str) -> None:
    """The goals, and whether they are reached."""
    seconds = {variant.name: variant.seconds for variant in variants}
    aims = [
        ("at least 20 times (a)", seconds["a"] / seconds["d"], seconds["a"] / seconds["d"] >= 20),
        ("within 10 % of (c)", seconds["d"] / seconds["c"], seconds["d"] / seconds["c"] <= 1.1),
    ]
    if device.startswith("cuda"):
        aims.append(("at most twice the floor", seconds["d"] / floor, seconds["d"] <= 2 * floor))
    for aim, ratio, reached in aims:
        print(f"goal {aim}: {ratio:.2f}, {'reached' if reached else 'not reached'}")


def profiled(ours: Timed, rows: int = 15) -> str:
    """Where our time goes, by operation; what no operation explains is Python and nnsight."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=kinds) as found:
        taken, _ = ours.run()
    events = found.key_averages()
    inside = sum(event.self_cpu_time_total for event in events) / 1e6
    shown = events.table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=50)
    return f"{shown}\nin operations {inside:.2f} s of {taken:.2f} s"


def peak(job: Job) -> float | None:
    """GiB of a GPU's memory beside the weights at the worst moment; `None` on a CPU, see --growth."""
    if job.device.type != "cuda":
        return None
    weights = sum(p.numel() * p.element_size() for p in job.plain.causal_lm.parameters())
    both = weights + sum(p.numel() * p.element_size() for p in job.model.lm._module.parameters())
    return (torch.cuda.max_memory_allocated(job.device) - both) / 2**30


def machine(device: str) -> str:
    """What this runs on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    on = torch.cuda.get_device_name() if device.startswith("cuda") else f"{name}, {torch.get_num_threads()} threads"
    return f"{on}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
