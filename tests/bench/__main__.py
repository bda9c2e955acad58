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


def blocks_of(options: argparse.Namespace) -> Blocks:
    names = "pairs_per_batch", "cells_per_forward"
    ours = tuple((name, getattr(options, name)) for name in names if getattr(options, name) is not ...)
    return Blocks(options.hooks_pairs, options.hooks_cells, ours)


def agreement(variants: list[Timed], size: Size, exact: bool) -> dict[str, Any]:
    """The variants' largest differences, also relative to the largest value; `exact` requires the tolerance."""
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


def print_agreement(results: dict[str, Any], size: Size, dtype: str) -> None:
    apart = ", ".join(f"{names} {value:.1e}" for names, value in results["differences"].items())
    print(f"  largest differences of the logit differences, {dtype}: {apart}")
    print(
        f"  the largest of them is {results['relative']:.1e} of the largest value ({results['largest_value']:.3g}); "
        f"cells of a pair lie {results['spread']:.3g} apart; other decoded numbers: {results['other_answers']}"
    )
    if not results["agree"]:
        print(f"  ERROR: the variants differ by more than {size.tolerance:.0e}: their times mean nothing")


def check_in_fp32(size: Size, folder: Path, device: str, blocks: Blocks) -> dict[str, Any]:
    """Run every variant on two pairs in fp32; the timed runs are rounded more coarsely."""
    model = load(size, folder, device, "float32")
    job = job_of(model, pairs_of(size, model, CHECKED_PAIRS))
    variants = grid_variants(job, some_cells(job, 20), blocks)
    measure(variants, 0)
    results = agreement(variants, size, exact=True)
    print_agreement(results, size, f"float32 on {CHECKED_PAIRS} pairs")
    return results


def measure_size(size: Size, folder: Path, options: argparse.Namespace, device: str, dtype: str) -> dict[str, Any]:
    """Run and print everything that the options ask for of one size."""
    blocks, results = blocks_of(options), {}
    if dtype != "float32":
        results["fp32"] = check_in_fp32(size, folder, device, blocks)
        gc.collect()
    model = load(size, folder, device, dtype)
    job = job_of(model, pairs_of(size, model, options.pairs))
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
    results |= {"flop": work._asdict(), "flop_per_second": rate, "machine": report.machine(device, dtype)}
    results["grid"] = group(
        job, "grid", grid_variants(job, some_cells(job, options.sample), blocks), floors, options, size
    )
    if not options.no_decoding:
        decoding = decoding_variants(job, some_cells(job, options.sample), blocks)
        results["decoding"] = group(job, "grid with greedy decoding", decoding, {}, options, size)
    print()
    results["goals"] = report.goals(results["grid"]["rows"], gpu=device.startswith("cuda"))
    for goal, reached in results["goals"].items():
        print(f"  {goal}: {reached}")
    if options.profile:
        results["shares"] = profile(job, blocks)
    if options.growth:
        axes = growth.points_of(model, size.shape is not None)
        results["growth"] = growth.measure_growth(size.name, folder, model, options.repeats, dict(blocks.ours), axes)
        print("\n" + growth.growth_text(results["growth"]))
    return results


def group(
    job: Job, title: str, variants: list[Timed], floors: dict[str, float], options: argparse.Namespace, size: Size
) -> dict[str, Any]:
    """Time one group of variants, print its table and what the numbers agree to."""
    measure(variants, options.repeats)
    rows = report.rows_of(variants, job.cells, floors)
    print(f"\n{title}: medians of {options.repeats}; ratios of times\n{report.table(rows, job.cells)}")
    dtype = str(job.model.dtype).removeprefix("torch.")
    results = agreement(variants, size, exact=dtype == "float32")
    print_agreement(results, size, dtype)
    return {"rows": rows, "taken": {v.name: v.taken for v in variants}, "agreement": results}


def profile(job: Job, blocks: Blocks) -> dict[str, Any]:
    """Print the share of time of each part of the sweep."""
    results = {"of the process, by sampled stacks": shares.host_shares(job, **dict(blocks.ours))}
    if job.device.type == "cuda":
        results["of the GPU, by kernels"] = shares.kernel_shares(job, **dict(blocks.ours))
    for what, parts in results.items():
        print(f"\nshares of ours, {what}")
        for part, share in parts.items():
            print(f"  {share:6.1%}  {part}")
    return results


def agrees(results: dict[str, Any]) -> bool:
    checked = [results.get("fp32"), *(results[name]["agreement"] for name in ("grid", "decoding") if name in results)]
    return all(one["agree"] for one in checked if one is not None)


def main(arguments: list[str] | None = None) -> int:
    options = options_of(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = str(pick_device(options.device))
    if "1b" in options.size and device == "cpu" and not options.force:
        print("size 1b is meant for a GPU and takes hours on a CPU; add --force to run it here", file=sys.stderr)
        return 2
    results = {}
    for name in options.size:
        with tempfile.TemporaryDirectory() as folder:
            size = SIZES[name]
            results[name] = measure_size(size, Path(folder), options, device, options.dtype or size.dtype)
        gc.collect()
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0 if all(map(agrees, results.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
