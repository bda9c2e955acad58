"""`python -m tests.bench`: see the package."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from codi_tracing.traces.model.loading import pick_device
from tests.bench import growth, report, shares
from tests.bench.floor import rate_of, work_of
from tests.bench.job import Job, job_of
from tests.bench.sizes import SIZES, Size, load, pairs_of
from tests.bench.timing import Timed, measure
from tests.bench.variants import (
    Blocks,
    decoding_variants,
    differences,
    grid_variants,
    largest,
    other_answers,
    some_cells,
    spread,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CHECKED_PAIRS = 2  # in fp32, where the timed numbers are not


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    def chosen(text: str) -> int | None:
        return None if text == "auto" else int(text)

    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--size", nargs="+", choices=[*SIZES], default=["embedded", "mid"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", help="default: the size's own")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median is taken; one more warms up")
    parser.add_argument("--pairs", type=int, help="default: the size's own number")
    parser.add_argument("--sample", type=int, default=40, help="cells that run one at a time; the rest is scaled")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--hooks-pairs", type=int, default=Blocks.pairs, help="pairs in a forward of (c)")
    parser.add_argument("--hooks-cells", type=int, default=Blocks.cells, help="cells in a forward of (c)")
    parser.add_argument("--pairs-per-batch", type=chosen, default=..., help="the sweep's option: a number or auto")
    parser.add_argument("--cells-per-forward", type=chosen, default=..., help="the sweep's option: a number or auto")
    parser.add_argument("--no-decoding", action="store_true", help="leave the grid with greedy decoding out")
    parser.add_argument("--growth", action="store_true", help="also time and memory over cells, pairs and tokens")
    parser.add_argument("--profile", action="store_true", help="also what the sweep spends its time on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save all numbers")
    parser.add_argument("--force", action="store_true", help="run 1b on a CPU all the same")
    return parser.parse_args(arguments)


def blocks_of(told: argparse.Namespace) -> Blocks:
    names = "pairs_per_batch", "cells_per_forward"
    ours = tuple((name, getattr(told, name)) for name in names if getattr(told, name) is not ...)
    return Blocks(told.hooks_pairs, told.hooks_cells, ours)


def agreement(variants: list[Timed], size: Size, exact: bool) -> dict[str, Any]:
    """How far the numbers lie apart, against the largest of them; with `exact` it must be within the tolerance."""
    apart, scale = differences(variants), max(1.0, largest(variants))
    decoded = other_answers(variants)
    return {
        "differences": apart,
        "largest_value": largest(variants),
        "spread": spread(variants[-1].numbers),
        "relative": max(apart.values()) / scale,
        "other_answers": decoded,
        "agree": not exact or (max(apart.values()) / scale <= size.tolerance and decoded == 0),
    }


def say_agreement(found: dict[str, Any], size: Size, dtype: str) -> None:
    apart = ", ".join(f"{names} {value:.1e}" for names, value in found["differences"].items())
    print(f"  largest differences of the logit differences, {dtype}: {apart}")
    print(
        f"  the largest of them is {found['relative']:.1e} of the largest value ({found['largest_value']:.3g}); "
        f"cells of a pair lie {found['spread']:.3g} apart; other decoded numbers: {found['other_answers']}"
    )
    if not found["agree"]:
        print(f"  ERROR: the variants differ by more than {size.tolerance:.0e}: their times mean nothing")


def check_in_fp32(size: Size, folder: Path, device: str, blocks: Blocks) -> dict[str, Any]:
    """Run every variant on two pairs in fp32, where what is timed is rounded more coarsely."""
    model = load(size, folder, device, "float32")
    job = job_of(model, pairs_of(size, model, CHECKED_PAIRS))
    variants = grid_variants(job, some_cells(job, 20), blocks)
    measure(variants, 0)
    found = agreement(variants, size, exact=True)
    say_agreement(found, size, f"float32 on {CHECKED_PAIRS} pairs")
    return found


def measure_size(size: Size, folder: Path, told: argparse.Namespace, device: str, dtype: str) -> dict[str, Any]:
    """Everything that was asked for of one size, printed as it is found."""
    blocks, found = blocks_of(told), {}
    if dtype != "float32":
        found["fp32"] = check_in_fp32(size, folder, device, blocks)
        gc.collect()
    model = load(size, folder, device, dtype)
    job = job_of(model, pairs_of(size, model, told.pairs))
    longest = max(ready.tokens for ready in job.ready)
    print(f"\n{size.name}: {len(job.ready)} pairs × {len(job.sites)} cells, questions of up to {longest} tokens")
    print(f"  {report.machine(device, dtype)}")
    work = work_of(job)
    rate = rate_of(job, tokens=min(len(job.ready), blocks.pairs) * min(len(job.sites) + 2, blocks.cells))
    floors = {
        "floor: its products alone": work.total / rate,
        "floor, no step before the first written": work_of(job, late=True).total / rate,
    }
    print(f"  {work.total / 1e9:,.0f} GFLOP of products, at {rate / 1e9:,.0f} GFLOP/s as measured here")
    found |= {"flop": work._asdict(), "flop_per_second": rate, "machine": report.machine(device, dtype)}
    found["grid"] = group(job, "grid", grid_variants(job, some_cells(job, told.sample), blocks), floors, told, size)
    if not told.no_decoding:
        decoding = decoding_variants(job, some_cells(job, told.sample), blocks)
        found["decoding"] = group(job, "grid with greedy decoding", decoding, {}, told, size)
    print()
    found["goals"] = report.goals(found["grid"]["rows"], gpu=device.startswith("cuda"))
    for goal, reached in found["goals"].items():
        print(f"  {goal}: {reached}")
    if told.profile:
        found["shares"] = profile(job, blocks)
    if told.growth:
        axes = growth.points_of(model, size.shape is not None)
        found["growth"] = growth.measure_growth(size.name, folder, model, told.repeats, dict(blocks.ours), axes)
        print("\n" + growth.growth_text(found["growth"]))
    return found


def group(
    job: Job, title: str, variants: list[Timed], floors: dict[str, float], told: argparse.Namespace, size: Size
) -> dict[str, Any]:
    """Time one group of variants, print its table and what the numbers agree to."""
    measure(variants, told.repeats)
    rows = report.rows_of(variants, job.cells, floors)
    print(f"\n{title}: medians of {told.repeats}; ratios of times\n{report.table(rows, job.cells)}")
    dtype = str(job.model.dtype).removeprefix("torch.")
    found = agreement(variants, size, exact=dtype == "float32")
    say_agreement(found, size, dtype)
    return {"rows": rows, "taken": {v.name: v.taken for v in variants}, "agreement": found}


def profile(job: Job, blocks: Blocks) -> dict[str, Any]:
    """Print what the sweep spends its time on."""
    found = {"of the process, by sampled stacks": shares.host_shares(job, **dict(blocks.ours))}
    if job.device.type == "cuda":
        found["of the GPU, by kernels"] = shares.kernel_shares(job, **dict(blocks.ours))
    for what, parts in found.items():
        print(f"\nshares of ours, {what}")
        for part, share in parts.items():
            print(f"  {share:6.1%}  {part}")
    return found


def agrees(found: dict[str, Any]) -> bool:
    checked = [found.get("fp32"), *(found[name]["agreement"] for name in ("grid", "decoding") if name in found)]
    return all(one["agree"] for one in checked if one is not None)


def main(arguments: list[str] | None = None) -> int:
    told = options_of(arguments)
    if told.threads:
        torch.set_num_threads(told.threads)
    device = str(pick_device(told.device))
    if "1b" in told.size and device == "cpu" and not told.force:
        print("size 1b is meant for a GPU and takes hours on a CPU; add --force to run it here", file=sys.stderr)
        return 2
    found = {}
    for name in told.size:
        with tempfile.TemporaryDirectory() as folder:
            size = SIZES[name]
            found[name] = measure_size(size, Path(folder), told, device, told.dtype or size.dtype)
        gc.collect()
    if told.json:
        told.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if all(map(agrees, found.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
