"""Seconds of the variants, taken in turns, and what their numbers are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.bench.alone import Alone
from tests.bench.job import Found, Job

Numbers = dict[tuple[int, int], Found]  # by pair and cell


def seconds(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """How long a call takes, all work on the device done; and what it gives."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    found = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, found


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


@dataclass
class Timed:
    """A variant's seconds for the whole grid, one entry a repeat; its numbers, and of how many cells."""

    name: str
    what: str
    run: Callable[[], tuple[float, Numbers]]
    cells: int  # that were really timed
    taken: list[float] = field(default_factory=list)
    numbers: Numbers = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return median(self.taken)


def measure(variants: list[Timed], repeats: int) -> None:
    """Warm every variant up, then time them in turns, so that a slow minute falls on all of them."""
    for repeat in range(repeats + 1):
        for variant in variants:
            taken, variant.numbers = variant.run()
            if repeat:
                variant.taken.append(taken)


def alone(job: Job, variant: Alone, chosen: list[tuple[int, int]], decode: bool = False) -> tuple[float, Numbers]:
    """Run the chosen cells one by one; their seconds scaled to the whole grid, what a pair needs once counted once."""
    once = each = 0.0
    begun, numbers = {}, {}
    for pair, cell in chosen:
        ready, site = job.ready[pair], job.sites[cell]
        if pair not in begun:
            taken, begun[pair] = seconds(lambda ready=ready: variant.begin(job, ready), job.device)
            once += taken
        taken, numbers[pair, cell] = seconds(
            lambda ready=ready, pair=pair, site=site: variant.cell(job, ready, begun[pair], site, decode), job.device
        )
        each += taken
    return once / len(begun) * len(job.ready) + each / len(chosen) * job.cells, numbers


def whole(job: Job, run: Callable[[], Any], read: Callable[[Any], list[Any]]) -> tuple[float, Numbers]:
    """Run the whole grid; `read` turns what it gives, untimed, into tensors `[pair, cell]`."""
    taken, found = seconds(run, job.device)
    columns = [values.tolist() for values in read(found)]
    places = ((pair, cell) for pair in range(len(job.ready)) for cell in range(len(job.sites)))
    return taken, {(pair, cell): Found(*(values[pair][cell] for values in columns)) for pair, cell in places}
